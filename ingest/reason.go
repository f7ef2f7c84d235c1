package ingest

import "fmt"

// Reason codes that decide something here. The others are only shown.
const (
	codeUnsupportedVersion = 0x84
	codeBadCredentials     = 0x86
	codeNotAuthorized      = 0x87
	codeBanned             = 0x8A
	codeBadAuthMethod      = 0x8C
	codeSessionTakenOver   = 0x8E
	codePacketTooLarge     = 0x95
	codeSharedNotSupported = 0x9E
	codeSubIDsNotSupported = 0xA1
	codeWildcardNotSupport = 0xA2
	codeUnspecifiedError   = 0x80
)

var reasonNames = map[byte]string{
	0x00: "success",
	0x04: "disconnect with Will message",
	0x80: "unspecified error",
	0x81: "malformed packet",
	0x82: "protocol error",
	0x83: "implementation specific error",
	0x84: "unsupported protocol version",
	0x85: "client identifier not valid",
	0x86: "bad user name or password",
	0x87: "not authorized",
	0x88: "server unavailable",
	0x89: "server busy",
	0x8A: "banned",
	0x8B: "server shutting down",
	0x8C: "bad authentication method",
	0x8D: "keep alive timeout",
	0x8E: "session taken over",
	0x8F: "topic filter invalid",
	0x90: "topic name invalid",
	0x93: "receive maximum exceeded",
	0x94: "topic alias invalid",
	0x95: "packet too large",
	0x96: "message rate too high",
	0x97: "quota exceeded",
	0x98: "administrative action",
	0x99: "payload format invalid",
	0x9A: "retain not supported",
	0x9B: "QoS not supported",
	0x9C: "use another server",
	0x9D: "server moved",
	0x9E: "shared subscriptions not supported",
	0x9F: "connection rate exceeded",
	0xA0: "maximum connect time",
	0xA1: "subscription identifiers not supported",
	0xA2: "wildcard subscriptions not supported",
}

// reasonName is the name of a reason code, MQTT 5 section 2.4, in lower case.
func reasonName(code byte) string {
	if name, ok := reasonNames[code]; ok {
		return name
	}
	return fmt.Sprintf("reason code 0x%02X", code)
}

// describeCode is a reason code with the broker's own words, if it had any.
func describeCode(code byte, reason string) string {
	text := reasonName(code)
	if _, known := reasonNames[code]; known {
		text = fmt.Sprintf("%s (0x%02X)", text, code)
	}
	if reason != "" {
		text += ": " + reason
	}
	return text
}
