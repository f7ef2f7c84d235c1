package ingest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/eclipse/paho.golang/packets"
	"github.com/mqttpg/bridge/mapping"
	"go.uber.org/zap"
)

const (
	readBufferSize = 64 << 10

	// maxControlPacket bounds what passes through to paho, which allocates what the length field
	// says, up to 256 MB. No packet but PUBLISH has reason to be near it.
	maxControlPacket = 1 << 20

	// writeTimeout bounds each write. A broker that takes nothing for so long is stalled, and
	// without a bound whoever writes would hang with it: the reader, the writer's loop, the pinger.
	writeTimeout = 10 * time.Second

	// heavyBytes is how long an acknowledgement is on a connection whose broker exceeds Receive Maximum, where
	// Config.FewUnread is set: the buffers on the way hold the fewer. A User Property fills it up. It is less where
	// the broker's Maximum Packet Size is.
	heavyBytes = 64
	// heavyAtOnce is how many of these leave in one write, which may have to wait until the broker has read some.
	heavyAtOnce = 256
	// heavyBuffer is how much of them our own kernel keeps (twice that, on Linux).
	heavyBuffer = 16 << 10
	// heavyTimeout bounds each write there, in place of writeTimeout: to wait is the purpose. A broker of which others
	// take most of the time may send for longer than ten seconds before it reads, and a connection that is cut off
	// meanwhile has all that it did not read sent again, for ever.
	heavyTimeout = 2 * time.Minute

	// lingerTimeout is how long the broker may take to close its side after our DISCONNECT, and to take one that says
	// what it did wrong.
	lingerTimeout = time.Second
)

// errLeft is the cause of a connection that we closed on purpose.
var errLeft = errors.New("closed by the bridge")

// errTakesNothing is the cause when the broker has not read, by the time that we wanted to be gone, what we had to write.
var errTakesNothing = errors.New("the broker takes nothing")

// errLibrary is the cause when paho closes the connection and we saw no reason to.
var errLibrary = errors.New("closed by the MQTT library: a packet it could not read")

// disconnectError is a DISCONNECT sent by the broker.
type disconnectError struct {
	code   byte
	reason string // Reason String, often empty
}

func (e *disconnectError) Error() string {
	return "the broker disconnected: " + describeCode(e.code, e.reason)
}

// versionError is a CONNACK in the form of MQTT 3.1.1, which has no properties.
type versionError struct{ code byte }

func (e *versionError) Error() string {
	return fmt.Sprintf("the broker does not speak MQTT 5: it answered with a CONNACK of MQTT 3.1.1, return code %d", e.code)
}

// writeError is a write that failed or took too long.
type writeError struct{ err error }

func (e *writeError) Error() string { return "write to the broker: " + e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// conn is one network connection to the broker, the net.Conn that paho works on.
//
// Read is called by paho's one reading goroutine. It takes PUBLISH and PUBREL out of the stream,
// notes CONNACK, DISCONNECT and PINGRESP in passing, and gives everything else to paho as it is.
//
// Writes are collected between Lock and Unlock, which paho calls around each packet, and leave in
// one piece. A write that fails ends the connection.
type conn struct {
	session *Session
	raw     net.Conn

	// ctx ends with the connection, at once when the cause is known: paho's OnClientError and Done
	// come only after all of paho's goroutines are through. Its cause says why.
	ctx    context.Context
	cancel context.CancelCauseFunc

	generation  atomic.Uint64 // 0 until CONNACK
	incarnation uint64        // of the broker session; set before generation, and so is
	present     bool          // whether it was there before this connection
	attempt     uint64        // number among all connections that were begun
	broker      string        // host and port, unless all brokers have common sessions
	keepAlive   keepAlive
	inFlight    *Budget       // one for each QoS 1 and 2 message delivered and not acknowledged
	starved     atomic.Bool   // the reader waits for the byte budget
	leaving     atomic.Bool   // DISCONNECT is about to be sent: what still comes is not for us
	readEnded   chan struct{} // closed when Read has returned an error
	endRead     sync.Once

	// Of the reading goroutine.
	reader    *bufio.Reader
	header    [5]byte
	passing   []byte // to be given to paho first,
	passLeft  int    // then so many bytes of reader
	completed []byte // PUBCOMPs to be written: a burst of PUBRELs is answered in one write
	pace      pace
	gatherer  gatherer
	prompt    promptness
	readAt    time.Time // when the bytes arrived that are in the buffer
	stamped   time.Time // the time of receipt of the message before
	arena     *mapping.Arena
	delivered Delivery // the one at hand: its memory is used again for the next

	writeMu sync.Mutex
	out     []byte

	writePatience time.Duration // guarded by writeMu

	// Of the goroutine that acknowledges.
	heavy   bool   // acknowledgements are, see weighs
	padding []byte // follows the Packet Identifier of a heavy one

	// Whether the broker exceeds Receive Maximum. The count is of the reading goroutine.
	exceeds      atomic.Bool
	maximumBytes uint32 // the broker's Maximum Packet Size, 0 is none; set before generation
	asked        atomic.Uint64
	askedBefore  uint64
	sinceAsked   int // messages with QoS 1 or 2

	// What the answer to a PINGREQ will confirm.
	confirmMu  sync.Mutex
	confirming uint64 // its number; 0: none is on its way; asked has it, too
	confirms   uint64 // Ack.Number
}

func newConn(s *Session, raw net.Conn) *conn {
	c := &conn{session: s, raw: raw, readEnded: make(chan struct{}), inFlight: NewBudget(s.cfg.maxInFlight()), writePatience: writeTimeout}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.gatherer = newGatherer(raw)
	c.prompt = newPromptness(socket(raw))
	c.reader = bufio.NewReaderSize(watchedReader{c}, readBufferSize)
	switch raw.(type) {
	case *tls.Conn, *webSocketConn:
		c.pace.pieces = true
	}
	return c
}

// ended says whether the connection is over; cause then says why.
func (c *conn) ended() bool { return c.ctx.Err() != nil }

func (c *conn) cause() error { return context.Cause(c.ctx) }

// watchedReader notes when bytes arrive, a whole buffer at a time, and lets them gather as pace says. Before
// it waits for more, the PUBCOMPs that were collected leave: the next packet may be long on its way.
type watchedReader struct{ c *conn }

func (r watchedReader) Read(p []byte) (int, error) {
	if err := r.c.writeCompleted(); err != nil {
		return 0, err
	}
	n, err := r.c.gather(p)
	if n > 0 {
		r.c.readAt = time.Now()
		r.c.pace.read(n == len(p), r.c.readAt)
		if r.c.pace.sparse() {
			r.c.prompt.acknowledge()
		}
		r.c.keepAlive.read(r.c.readAt)
	}
	return n, err
}

// gather reads from the network, after a pause if pace says so.
func (c *conn) gather(p []byte) (int, error) {
	if d := c.pace.pause(c.inFlight.Used()); d > 0 {
		c.gatherer.begin()
		time.Sleep(d)
		if n := c.gatherer.read(p); n > 0 {
			return n, nil
		}
	}
	if !c.gatherer.end() { // the socket is closed, or it would be a matter of luck when the next read returns
		c.fail(errNotWoken)
	}
	return c.raw.Read(p)
}

// errNotWoken ends a connection that the kernel would not wake us for.
var errNotWoken = errors.New("the kernel takes no bound for reading")

// Read gives paho the bytes that are for it. See conn.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.read(p)
	if err != nil {
		if c.leaving.Load() {
			c.cancel(errLeft) // the broker closes its side because of our DISCONNECT
		}
		c.cancel(err)
		c.endRead.Do(func() { close(c.readEnded) })
	}
	return n, err
}

func (c *conn) read(p []byte) (int, error) {
	for {
		switch {
		case len(c.passing) > 0:
			n := copy(p, c.passing)
			c.passing = c.passing[n:]
			return n, nil
		case c.passLeft > 0:
			n, err := c.reader.Read(p[:min(len(p), c.passLeft)])
			c.passLeft -= n
			return n, unexpected(err)
		}
		if err := c.packet(); err != nil {
			return 0, err
		}
	}
}

// packet reads the fixed header of the next packet and deals with the packet as its type asks.
func (c *conn) packet() error {
	header := c.header[:0]
	first, err := c.reader.ReadByte()
	if err != nil {
		return err
	}
	header = append(header, first)
	length := 0
	for shift := 0; ; shift += 7 {
		if shift > 21 {
			return c.refuse(malformed("Remaining Length of more than four bytes"))
		}
		b, err := c.reader.ReadByte()
		if err != nil {
			return unexpected(err)
		}
		header = append(header, b)
		length |= int(b&0x7F) << shift
		if b < 0x80 {
			break
		}
	}

	kind, flags := first>>4, first&0x0F
	if c.leaving.Load() { // only the end of the stream matters now
		return c.discard(length)
	}
	switch kind {
	case packets.PUBLISH:
		return c.publish(flags, length)
	case packets.PUBREL:
		return c.pubrel(flags, length)
	case packets.CONNACK, packets.PUBACK, packets.SUBACK, packets.UNSUBACK, packets.PINGRESP, packets.DISCONNECT:
	default:
		// There is no other that this client could have asked for, and paho is not made for them: its answer
		// to a PUBREC dereferences a connection that may be gone.
		return c.refuse(protocolError(fmt.Sprintf("unexpected packet of type %d", kind)))
	}
	if length > maxControlPacket {
		return c.refuse(&packetError{code: codePacketTooLarge, text: fmt.Sprintf("packet of type %d has %d bytes", kind, length)})
	}
	c.passing, c.passLeft = header, length
	switch kind {
	case packets.CONNACK, packets.DISCONNECT, packets.PINGRESP:
		whole := append(header, make([]byte, length)...)
		if _, err := io.ReadFull(c.reader, whole[len(header):]); err != nil {
			return unexpected(err)
		}
		c.passing, c.passLeft = whole, 0
		return c.note(kind, whole, whole[len(header):])
	}
	return nil
}

// note takes what we need to know from a packet on its way to paho.
func (c *conn) note(kind byte, whole, body []byte) error {
	switch kind {
	case packets.PINGRESP:
		if rtt, ok := c.keepAlive.response(); ok {
			c.session.pinged(rtt)
			c.confirmed()
		}
		return nil
	case packets.DISCONNECT:
		end := &disconnectError{}
		if p, err := packets.ReadPacket(bytes.NewReader(whole)); err == nil {
			d := p.Content.(*packets.Disconnect)
			end.code = d.ReasonCode
			if d.Properties != nil {
				end.reason = d.Properties.ReasonString
			}
		} else if len(body) > 0 {
			end.code = body[0]
		}
		c.cancel(end) // paho's callbacks come later, in no certain order
		return nil
	}
	// CONNACK, before the first PUBLISH of the connection: paho tells of it only later.
	if c.generation.Load() != 0 { // [MQTT-3.2.0-2]
		return c.refuse(protocolError("second CONNACK"))
	}
	if len(body) == 2 { // MQTT 5 has a Property Length at least
		return &versionError{code: body[1]}
	}
	p, err := packets.ReadPacket(bytes.NewReader(whole))
	if err != nil {
		return c.refuse(malformed("CONNACK: " + err.Error()))
	}
	ack := p.Content.(*packets.Connack)
	if ack.ReasonCode >= codeUnspecifiedError {
		return nil
	}
	if text := connackFault(ack.Properties); text != "" {
		return c.refuse(protocolError("CONNACK: " + text))
	}
	c.session.accepted(c, ack)
	return nil
}

// connackFault says what in a successful CONNACK cannot be lived with, or returns the empty string.
func connackFault(p *packets.Properties) string {
	switch {
	case p.AuthMethod != "":
		// CONNECT had none, so this one must not either [MQTT-4.12.0-6]. paho would call a handler that is
		// not there.
		return "Authentication Method, though none was asked for"
	case p.ReceiveMaximum != nil && *p.ReceiveMaximum == 0:
		return "Receive Maximum is 0" // the status could never be published
	}
	return ""
}

// publish takes a PUBLISH of length bytes after the fixed header out of the stream and delivers it.
// The order is that of receipt: all of it happens in the reading goroutine.
func (c *conn) publish(flags byte, length int) error {
	c.pace.message(flags >> 1 & 0x03)
	c.count(flags >> 1 & 0x03)
	if c.generation.Load() == 0 { // [MQTT-3.2.0-1]
		return c.refuse(protocolError("PUBLISH before CONNACK"))
	}
	if err := checkPublishFlags(flags); err != nil {
		return c.refuse(err)
	}
	if limit := c.session.cfg.MaxMessageBytes; limit > 0 && length > limit {
		return c.publishCut(flags, length)
	}
	// The length is the broker's word, up to 256 MB: the bytes are acquired before they are allocated.
	size := length + overheadBytes
	qos := flags >> 1 & 0x03
	admitted, err := c.admit(qos, int64(size))
	if err != nil {
		return err
	}
	if !admitted { // not even decoded, so a malformed one among them goes unnoticed
		return c.discard(length)
	}
	delivered := false
	defer func() {
		if !delivered {
			c.dismiss(qos, int64(size))
		}
	}()
	current, arena := c.arena.Next(length)
	c.arena = current
	frame := arena.Bytes(length)
	if _, err := io.ReadFull(c.reader, frame); err != nil {
		return unexpected(err)
	}
	p, err := decodePublish(flags, frame)
	if err != nil {
		return c.refuse(err)
	}
	if unpacked := p.unpacked(); unpacked > 0 {
		c.session.cfg.Budget.Charge(int64(unpacked))
		size += unpacked
	}
	arena.Hold()
	if delivered = c.session.deliver(c.ctx, c.delivery(&p, size, arena)); !delivered {
		arena.Release(1)
	}
	c.delivered = Delivery{} // the next message may be long in coming
	return nil
}

// count notes a message with QoS 1 or 2, to see whether the broker exceeds Receive Maximum. Between a PINGREQ of
// confirm and its PINGRESP no more come than Receive Maximum from one that keeps to it and handles packets in order: it
// has read the acknowledgements before the PINGREQ by then, and none behind it. That is seen as well where the
// database keeps up with the broker, or a small byte budget keeps few in flight.
func (c *conn) count(qos byte) {
	if qos == 0 {
		return
	}
	if asked := c.asked.Load(); asked != c.askedBefore {
		c.askedBefore, c.sinceAsked = asked, 0
	}
	if c.sinceAsked++; c.askedBefore != 0 && c.sinceAsked > int(c.session.cfg.ReceiveMaximum) && !c.exceeds.Load() {
		c.exceeds.Store(true)
	}
}

// clockStep is how far behind the last time of receipt the clock may be and is not believed to have been set back.
const clockStep = time.Second

// stamp is the time of receipt of the next message. Those of one read have none of their own: microseconds keep
// their order [MQTT-4.6.0-5], which is all that tells the later of two readings without a time.
func (c *conn) stamp() time.Time {
	at := c.readAt.UTC().Truncate(time.Microsecond)
	if ahead := c.stamped.Sub(at); ahead >= 0 && ahead < clockStep {
		at = c.stamped.Add(time.Microsecond)
	}
	c.stamped = at
	return at
}

// delivery makes the Delivery of a PUBLISH.
func (c *conn) delivery(p *publish, size int, arena *mapping.Arena) *Delivery {
	m := arena.Message()
	*m = mapping.Message{
		Topic:           p.topic,
		Payload:         p.payload,
		QoS:             p.qos,
		Retain:          p.retain,
		ContentType:     p.contentType,
		CorrelationData: p.correlationData,
		UserProperties:  p.userProperties,
		ReceivedAt:      c.stamp(),
		Seed:            rand.Uint64(), //nolint:gosec // it only has to differ
	}
	c.delivered = Delivery{
		Message:         m,
		Arena:           arena,
		PacketID:        p.packetID,
		Dup:             p.dup,
		Connection:      c.generation.Load(),
		Incarnation:     c.incarnation,
		Attempt:         c.attempt,
		Broker:          c.broker,
		SubscriptionIDs: p.subscriptionIDs,
		Size:            size,
	}
	return &c.delivered
}

const (
	// keptPayload is how much is kept of the payload of a message that is too large.
	keptPayload = 64 << 10
	// keptProperties bounds the properties of such a message: beyond it they are left out, for User
	// Properties may fill a packet as well as a payload does.
	keptProperties = 256 << 10
	// cutBytes is taken of the budget for one, before it is known how long its topic and properties are.
	cutBytes = keptPayload + math.MaxUint16 + keptProperties + overheadBytes
)

// publishCut delivers the beginning of a PUBLISH that is too large to be held, and reads the rest
// without keeping it. The broker cannot be asked not to send such messages: with a Maximum Packet Size
// it throws them away and tells nobody.
func (c *conn) publishCut(flags byte, length int) error {
	qos := flags >> 1 & 0x03
	admitted, err := c.admit(qos, cutBytes)
	if err != nil {
		return err
	}
	if !admitted {
		return c.discard(length)
	}
	delivered, held := false, int64(cutBytes)
	defer func() {
		if !delivered {
			c.dismiss(qos, held)
		}
	}()
	rest := length
	read := func(into []byte, n int) ([]byte, error) {
		if n > rest {
			return nil, c.refuse(malformed("PUBLISH: ends within a field"))
		}
		at := len(into)
		into = append(into, make([]byte, n)...)
		rest -= n
		_, err := io.ReadFull(c.reader, into[at:])
		return into, unexpected(err)
	}
	frame, err := read(nil, 2)
	if err != nil {
		return err
	}
	topic := int(binary.BigEndian.Uint16(frame))
	if qos > 0 {
		topic += 2 // Packet Identifier
	}
	if frame, err = read(frame, topic); err != nil {
		return err
	}
	var field []byte // Property Length
	for len(field) == 0 || field[len(field)-1] >= 0x80 && len(field) < 4 {
		if field, err = read(field, 1); err != nil {
			return err
		}
	}
	properties, err := (&fieldReader{rest: field}).varint()
	if err != nil {
		return c.refuse(err)
	}
	if properties <= keptProperties {
		frame, err = read(append(frame, field...), int(properties))
	} else {
		if int(properties) > rest {
			return c.refuse(malformed("PUBLISH: Property Length exceeds the packet"))
		}
		rest -= int(properties)
		frame, err = append(frame, 0), c.discard(int(properties))
	}
	if err != nil {
		return err
	}
	kept := min(rest, keptPayload)
	if frame, err = read(frame, kept); err != nil {
		return err
	}
	p, err := decodePublish(flags, frame)
	if err != nil {
		return c.refuse(err)
	}
	hash := xxhash.New()
	_, _ = hash.Write(p.payload) // a hash takes everything
	for rest > 0 {
		piece, err := c.reader.Peek(min(rest, max(1, c.reader.Buffered())))
		if err != nil {
			return unexpected(err)
		}
		_, _ = hash.Write(piece)
		rest -= len(piece)
		if err := c.discard(len(piece)); err != nil {
			return err
		}
	}
	size := len(frame) + overheadBytes + p.unpacked()
	if more := int64(size) - held; more > 0 {
		c.session.cfg.Budget.Charge(more)
	} else {
		c.session.cfg.Budget.Release(-more)
	}
	held = int64(size)
	d := c.delivery(&p, size, nil)
	d.Cut = &Cut{Size: length, Hash: hash.Sum64()}
	delivered = c.session.deliver(c.ctx, d)
	c.delivered = Delivery{}
	return nil
}

// admit takes size bytes of the budget for a message, and a place among those in flight if it has QoS 1
// or 2, and says whether it did.
//
// A QoS 0 message never waits: it is outside of Receive Maximum, so a flood of them would hold up
// PINGRESP and every QoS 1 message behind it. When the budget is exhausted it is dropped and counted.
//
// A QoS 1 or 2 message waits as long as the connection lives. Meanwhile nothing is read, the
// broker's sending comes to a halt by TCP's own means, and only our PINGREQs go on.
func (c *conn) admit(qos byte, size int64) (bool, error) {
	budget := c.session.cfg.Budget
	if qos == 0 {
		admitted := budget.TryAcquire(size)
		if !admitted {
			c.session.cfg.Metrics.dropped.WithLabelValues(dropBudget).Inc()
		}
		return admitted, nil
	}
	if !c.inFlight.TryAcquire(1) {
		if admitted, err := c.await(c.inFlight, 1); !admitted {
			return false, err
		}
	}
	if budget.TryAcquire(size) {
		return true, nil
	}
	c.starved.Store(true)
	admitted, err := c.await(budget, size)
	c.starved.Store(false)
	if !admitted {
		c.inFlight.Release(1)
	}
	return admitted, err
}

// dismiss gives back what admit took for a message that is not delivered after all.
func (c *conn) dismiss(qos byte, size int64) {
	c.session.cfg.Budget.Release(size)
	if qos > 0 {
		c.inFlight.Release(1)
	}
}

// await waits for n of a budget and says whether it got them: false without an error means that nothing
// more is taken.
func (c *conn) await(budget *Budget, n int64) (bool, error) {
	if err := c.writeCompleted(); err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	defer context.AfterFunc(c.session.stopping, cancel)()
	c.keepAlive.pause(true)
	err := budget.Acquire(ctx, n)
	c.keepAlive.pause(false)
	switch {
	case err == nil:
		return true, nil
	case c.ended():
		return false, c.cause()
	}
	return false, nil // StopTaking
}

// pubrel answers PUBREL, the third packet of a QoS 2 delivery, with PUBCOMP [MQTT-4.3.3-11].
//
// No state of QoS 2 is kept: PUBREC is sent where PUBACK would be, after the commit and in the order
// of receipt [MQTT-4.6.0-3]. A PUBLISH whose PUBREC got lost comes again with DUP and the same packet
// id, just as for QoS 1, and is recognised in the same way [MQTT-4.3.3-10]. One that comes without DUP,
// which only a broker that has gone back in time sends, is taken: it may be a new message. So is nothing
// gained by refusing an unknown packet id with 0x92; the answer is success always, also to a PUBREL that
// says 0x92 itself: the broker repeats PUBREL until it has the answer, to another process as well.
func (c *conn) pubrel(flags byte, length int) error {
	if flags != 0x02 { // [MQTT-3.6.1-1]
		return c.refuse(malformed("PUBREL: reserved flags"))
	}
	if length < 2 || length > maxControlPacket {
		return c.refuse(malformed("PUBREL: length"))
	}
	var id [2]byte
	if _, err := io.ReadFull(c.reader, id[:]); err != nil {
		return unexpected(err)
	}
	if err := c.discard(length - 2); err != nil { // reason code and properties change nothing
		return err
	}
	c.completed = append(c.completed, packets.PUBCOMP<<4, 2, id[0], id[1])
	return nil
}

func (c *conn) writeCompleted() error {
	if len(c.completed) == 0 {
		return nil
	}
	c.keepAlive.pause(true) // the write may have to wait for the broker, and what it answers cannot be seen meanwhile
	err := c.write(c.completed)
	c.keepAlive.pause(false)
	c.completed = c.completed[:0]
	return err
}

func (c *conn) discard(n int) error {
	_, err := c.reader.Discard(n)
	return unexpected(err)
}

// refuse ends the connection because of a packet that breaks the protocol, and tells the broker so
// [MQTT-4.13.1-1]. The session stays; what caused it may well come again on the next connection,
// which the backoff and the status are for.
func (c *conn) refuse(err error) error {
	code := byte(codeUnspecifiedError)
	if violation, ok := errors.AsType[*packetError](err); ok {
		code = violation.code
	}
	// Somebody may be writing, and have to wait for the broker: that must not become the cause.
	impatient := time.AfterFunc(lingerTimeout, func() { c.fail(err) })
	_ = c.write([]byte{packets.DISCONNECT << 4, 1, code}) // err matters more than that of the goodbye
	impatient.Stop()
	c.cancel(err)
	return err
}

// unexpected is for errors within a packet, where the end of the stream is not in order.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// acknowledge writes the acknowledgements that belong to this connection, all in one write unless they are heavy.
func (c *conn) acknowledge(acks []Ack) error {
	if !c.weighs() {
		return c.writeAcks(acks, nil)
	}
	for some := range slices.Chunk(acks, heavyAtOnce) {
		if err := c.writeAcks(some, c.padding); err != nil {
			return err
		}
		c.keepAlive.wrote(time.Now()) // there was room, as the broker has read
	}
	return nil
}

// weighs says whether acknowledgements are heavy: from the first sign that the broker exceeds Receive Maximum, and from
// the start where no sign would be seen. It may then read none while it sends its whole queue, and whatever the
// kernels and proxies between us hold of them comes again after a crash. Only the writer's goroutine acknowledges.
func (c *conn) weighs() bool {
	cfg := &c.session.cfg
	if !cfg.FewUnread || c.heavy {
		return c.heavy
	}
	window := int64(cfg.ReceiveMaximum)
	blind := cfg.QoS == 2 || cfg.maxInFlight() <= window // what PUBREC was sent for still counts in the broker's window
	if !blind && !c.exceeds.Load() && c.inFlight.Used() <= window {
		return false
	}
	c.heavy = true
	n := heavyBytes
	if limit := c.maximumBytes; limit > 0 { // [MQTT-3.4.2-3], [MQTT-3.5.2-3]
		n = int(min(limit, heavyBytes))
	}
	c.padding = padding(n)
	c.writeMu.Lock()
	c.writePatience = heavyTimeout
	c.writeMu.Unlock()
	if tcp, ok := socket(c.raw).(*net.TCPConn); ok {
		if err := tcp.SetWriteBuffer(heavyBuffer); err != nil {
			c.session.log.Warn("more acknowledgements than usual may be on their way to the broker", zap.Error(err))
		}
	}
	return true
}

// padding is what follows the Packet Identifier of an acknowledgement that has n bytes in all, up to 129: the reason code
// success, and as the only property a User Property that means nothing. It is nil where there is no room for that.
func padding(n int) []byte {
	const name = "padding"
	rest := n - 2 - 2 // after fixed header and Packet Identifier
	value := rest - 2 - 1 - 2 - len(name) - 2
	if value < 0 {
		return nil
	}
	w := append(make([]byte, 0, rest), packets.PubackSuccess, byte(rest-2) /* Property Length */, packets.PropUser)
	w = append(binary.BigEndian.AppendUint16(w, uint16(len(name))), name...)
	return append(binary.BigEndian.AppendUint16(w, uint16(value)), bytes.Repeat([]byte{'-'}, value)...)
}

// writeAcks writes those of the acknowledgements that belong to this connection, with what follows the Packet
// Identifier; nothing means success (section 3.4.2.1).
func (c *conn) writeAcks(acks []Ack, rest []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	generation := c.generation.Load()
	number, settled := uint64(0), int64(0)
	for _, a := range acks {
		if a.Connection != generation || a.QoS == 0 {
			continue
		}
		number = max(number, a.Number)
		settled++
		kind := packets.PUBACK << 4
		if a.QoS == 2 {
			kind = packets.PUBREC << 4
		}
		c.out = append(c.out, kind, byte(2+len(rest)), byte(a.PacketID>>8), byte(a.PacketID))
		c.out = append(c.out, rest...)
	}
	// Before they are written: the broker may send as many more once it has them (section 4.9).
	c.inFlight.Release(settled)
	if number > 0 && c.session.cfg.Confirmed != nil && !c.ended() {
		c.confirm(number)
	}
	return c.flush()
}

// confirm adds a PINGREQ behind acknowledgements, unless one is unanswered. Brokers handle the packets
// of a connection in order, so its answer tells that the acknowledgements were seen.
func (c *conn) confirm(number uint64) {
	c.confirmMu.Lock()
	defer c.confirmMu.Unlock()
	if c.confirming != 0 {
		return // the next batch asks
	}
	c.confirming, c.confirms = c.keepAlive.request(), number
	c.asked.Store(c.confirming)
	c.out = append(c.out, packets.PINGREQ<<4, 0)
}

// confirmed tells what the PINGRESP that was just noted confirms.
func (c *conn) confirmed() {
	c.confirmMu.Lock()
	number := uint64(0)
	if c.confirming != 0 && c.keepAlive.pending(c.confirming) == nil {
		number, c.confirming = c.confirms, 0
		c.asked.Store(0)
	}
	c.confirmMu.Unlock()
	if number > 0 {
		c.session.cfg.Confirmed(number)
	}
}

// ping sends a PINGREQ and returns its number.
func (c *conn) ping() (uint64, error) {
	n := c.keepAlive.request() // noted first: the answer may be quick
	return n, c.write([]byte{packets.PINGREQ << 4, 0})
}

// tryPing sends a PINGREQ unless somebody is writing, who may have to wait for the broker.
func (c *conn) tryPing() (sent bool, err error) {
	if !c.writeMu.TryLock() {
		return false, nil
	}
	defer c.writeMu.Unlock()
	c.keepAlive.request()
	c.out = append(c.out, packets.PINGREQ<<4, 0)
	return true, c.flush()
}

// barrier returns when the broker has read everything that was written before it: brokers handle the
// packets of a connection in order, so a PINGRESP tells that all acknowledgements were seen.
// DISCONNECT right after them, without a barrier, brought back 50 of 50.
func (c *conn) barrier(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.fail(errTakesNothing) }) // to write may have to wait, for longer than ctx lasts
	n, err := c.ping()
	stop()
	if err != nil {
		return err
	}
	for {
		changed := c.keepAlive.pending(n)
		if changed == nil {
			return nil
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			return c.cause()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *conn) write(p []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.out = append(c.out, p...)
	return c.flush()
}

// Lock begins a packet.
func (c *conn) Lock() { c.writeMu.Lock() }

// Write collects a part of a packet. It must be called between Lock and Unlock, as paho does.
func (c *conn) Write(p []byte) (int, error) {
	if c.ended() {
		return 0, c.cause()
	}
	c.out = append(c.out, p...)
	return len(p), nil
}

// Unlock ends a packet and sends it. Should that fail the connection is over, which is how the
// caller gets to know.
func (c *conn) Unlock() {
	_ = c.flush()
	c.writeMu.Unlock()
}

// flush sends what was collected. writeMu is held.
func (c *conn) flush() error {
	out := c.out
	c.out = c.out[:0]
	if cap(c.out) > readBufferSize { // not for ever the size of the largest SUBSCRIBE
		c.out = nil
	}
	if len(out) == 0 {
		return nil
	}
	if c.ended() {
		return c.cause()
	}
	err := c.raw.SetWriteDeadline(time.Now().Add(c.writePatience))
	if err == nil {
		_, err = c.raw.Write(out)
	}
	if err != nil {
		err = &writeError{err}
		c.fail(err)
	}
	return err
}

// fail ends the connection at once for the cause given, unless it has ended for another one.
func (c *conn) fail(cause error) {
	c.cancel(cause)
	_ = hardClose(c.raw)
}

// Close ends the connection. After a DISCONNECT of ours it first lets the broker read and close: a
// socket closed with unread input resets the connection, and a reset may overtake the DISCONNECT,
// whose loss would publish the Will.
func (c *conn) Close() error {
	if !c.leaving.Load() {
		c.cancel(errLibrary)
		return hardClose(c.raw)
	}
	c.cancel(errLeft)
	if half, ok := c.raw.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		timer := time.NewTimer(lingerTimeout)
		defer timer.Stop()
		select {
		case <-c.readEnded:
		case <-timer.C:
		}
	}
	return hardClose(c.raw)
}

// hardClose closes the socket below TLS and WebSocket, whose own closing would try to say goodbye
// and wait for a peer that may be stalled.
func hardClose(nc net.Conn) error { return socket(nc).Close() }

// socket is what TLS and WebSocket lie on.
func socket(nc net.Conn) net.Conn {
	for {
		switch wrapped := nc.(type) {
		case *webSocketConn:
			nc = wrapped.NetConn()
		case *tls.Conn:
			nc = wrapped.NetConn()
		default:
			return nc
		}
	}
}

// The rest of net.Conn, which paho does not use.

// LocalAddr returns the local address.
func (c *conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr returns the broker's address.
func (c *conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// SetDeadline sets both deadlines; the next write sets its own.
func (c *conn) SetDeadline(t time.Time) error { return c.raw.SetDeadline(t) }

// SetReadDeadline sets the deadline of Read.
func (c *conn) SetReadDeadline(t time.Time) error { return c.raw.SetReadDeadline(t) }

// SetWriteDeadline sets the deadline of writes; the next write sets its own.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.raw.SetWriteDeadline(t) }
