package nbd

// What the specification calls NBD_... is here without that prefix.

const (
	initMagic       = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic     = 0x49484156454F5054 // "IHAVEOPT"
	optReplyMagic   = 0x0003e889045565a9
	requestMagic    = 0x25609513
	simpleMagic     = 0x67446698
	structuredMagic = 0x668e33ef
)

// Handshake flags, of the server and, with the same values, of the client.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags.
const (
	flagHasFlags        = 1 << 0
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6
	flagSendDF          = 1 << 7
	flagCanMultiConn    = 1 << 8
	flagSendCache       = 1 << 10
	flagSendFastZero    = 1 << 11
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Replies to options.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repErrUnsup    = 1<<31 + 1
	repErrPolicy   = 1<<31 + 2
	repErrInvalid  = 1<<31 + 3
	repErrUnknown  = 1<<31 + 6
	repErrTooBig   = 1<<31 + 9
)

// Kinds of information on an export.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Command flags.
const (
	cmdFlagFUA      = 1 << 0
	cmdFlagNoHole   = 1 << 1
	cmdFlagDF       = 1 << 2
	cmdFlagReqOne   = 1 << 3
	cmdFlagFastZero = 1 << 4
)

// Structured replies.
const (
	replyFlagDone = 1

	replyNone        = 0
	replyOffsetData  = 1
	replyBlockStatus = 5
	replyError       = 1<<15 + 1
)

// States of base:allocation.
const (
	stateHole = 1 << 0
	stateZero = 1 << 1
)

// errno is an error value of the specification; 0 is none. They are Linux's own,
// but only these may be sent.
type errno uint32

const (
	ePerm     errno = 1
	eIO       errno = 5
	eInval    errno = 22
	eNoSpc    errno = 28
	eOverflow errno = 75
	eNotSup   errno = 95
	eShutdown errno = 108
)

// Sizes in bytes.
const (
	maxString      = 4096     // of a name, description or query
	maxRequest     = 32 << 20 // data of a request
	preferredBlock = 4096

	requestSize = 28
	simpleSize  = 16 // a simple reply without data
	chunkSize   = 20 // a structured reply without payload
	dataSize    = 28 // the head of a chunk with data
)
