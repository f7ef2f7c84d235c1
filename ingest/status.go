package ingest

import (
	"time"
)

// State is where a session stands.
type State string

// The states of a session. Only StateSubscribed does its work in full.
const (
	StateConnecting State = "connecting" // dialling, or waiting for CONNACK
	StateConnected  State = "connected"  // CONNACK is there; a subscription is still missing or was refused
	StateSubscribed State = "subscribed" // every subscription is granted at the QoS asked for
	StateBackoff    State = "backoff"    // waiting before the next attempt
	StateClosed     State = "closed"     // Run has returned, or was not called yet
)

// Status is a snapshot of a session's facts for people and health checks.
type Status struct {
	State    State
	URL      string // of the current or last attempt, without credentials
	ClientID string

	ConnectedSince time.Time // zero when not connected
	SessionPresent bool      // what the last CONNACK said
	Granted        Granted
	Subscriptions  []Subscription
	Findings       []Finding // of the self-check, as of the last CONNACK and SUBACK

	KeepAliveEffective time.Duration // the shorter of ours and Server Keep Alive; 0 = off
	LastPingReq        time.Time
	LastPingResp       time.Time
	RTT                time.Duration // of the last PINGRESP
	PingOutstanding    bool
	PingTimeouts       uint64    // connections given up because no PINGRESP came
	LastReceived       time.Time // last bytes of any kind

	Reconnects     uint64 // connections after the first
	SessionsLost   uint64 // CONNACKs that said Session Present 0 although the session had existed
	LastReasonCode byte   // of the last CONNACK or DISCONNECT that refused or ended a connection; 0 if none
	LastReason     string // why the last connection or attempt ended
	Contested      bool   // another client probably uses the client id, or did within the last two minutes
	Paused         bool   // reading waits for the byte budget; PINGRESP cannot be seen meanwhile
}

// Granted are the limits the broker set in CONNACK, or the protocol's defaults where it set none.
type Granted struct {
	SessionExpiry     time.Duration
	ReceiveMaximum    uint16 // of the broker, for what we publish; ours is Config.ReceiveMaximum
	MaximumQoS        byte
	MaximumPacketSize uint32 // 0 = no limit
	Retain            bool
	WildcardSubs      bool
	SharedSubs        bool
	SubscriptionIDs   bool
	KeepAlive         time.Duration // Server Keep Alive, or else what was asked for; 0 = off
}

// Subscription is the broker's answer to one topic filter.
type Subscription struct {
	Filter     string // as in SUBSCRIBE, with $share
	ReasonCode byte   // of SUBACK: the granted QoS, or 0x80 and above; meaningless until Answered
	OK         bool   // granted at the QoS asked for
	Text       string // what is wrong; empty when OK

	Identifier uint32 // Subscription Identifier of the last SUBSCRIBE; 0: none
}

// Answered says whether the SUBACK has come.
func (s *Subscription) Answered() bool { return s.Text != notAnswered }
