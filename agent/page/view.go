package page

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

// Limits of what one page shows, however much there is.
const (
	fewVMs         = 50 // with so many, those that are locked are shown from the start
	vmsOnPage      = 100
	disksOfVM      = 64
	maxWarnings    = 50
	maxConversions = 50
	maxText        = 2 << 10 // bytes of a path or of what is wrong
)

// view is what the page shows.
type view struct {
	Host    string
	Login   bool
	Missing string // why there is no overview
	Stale   string // why it is not a new one
	AsOf    moment
	Agent   agentView

	Warnings     []api.Warning
	MoreWarnings int
	Critical     int
	Notices      int

	Unlocked, Locked, Restarting, VMCount int

	KeyManagers   []keyManager
	KeyManagersOK int

	Conversions     []conversion
	MoreConversions int
	Converting      int // disks

	VMs  []vm
	List list
}

// agentView is the agent that tells.
type agentView struct {
	api.Agent
	Since moment
}

// list is which VMs are shown.
type list struct {
	Hidden         int    // that are locked, and for which one has to ask
	All            string // where they are, or fewer again
	First, Last    int    // of those that can be paged through
	Total          int
	Previous, Next string
}

func newView(s snapshot, query url.Values, now time.Time) *view {
	v := &view{}
	if s.overview == nil {
		v.Missing = s.err.Error()
		return v
	}
	if s.err != nil {
		v.Stale = s.err.Error()
	}
	o := s.overview
	v.AsOf = since(s.at, now)
	v.Agent = agentView{o.Agent, since(o.Agent.Since, now)}
	v.warn(o.Warnings)
	for _, k := range o.KeyManagers {
		v.addKeyManager(k, now)
	}
	v.addVMs(o.VMs, query, now)
	return v
}

// Title is the page's, with what is most urgent.
func (v *view) Title() string {
	title := "vmcrypt"
	if v.Host != "" {
		title = v.Host + " – " + title
	}
	if v.Critical > 0 {
		title = "(" + strconv.Itoa(v.Critical) + ") " + title
	}
	return title
}

// Announcement is what is said to those who listen to the page, when it changes.
func (v *view) Announcement() string {
	parts := []string{
		plural(v.Critical, "critical warning", "critical warnings"), plural(v.Notices, "warning", "warnings"),
		plural(v.Unlocked, "VM unlocked", "VMs unlocked"), plural(v.Locked, "locked", "locked"),
		strconv.Itoa(v.KeyManagersOK) + " of " + plural(len(v.KeyManagers), "key manager ok", "key managers ok"),
	}
	if v.Restarting > 0 {
		parts = append(parts, plural(v.Restarting, "restarting", "restarting"))
	}
	return strings.Join(parts, ", ")
}

func (v *view) warn(all []api.Warning) {
	for _, w := range all {
		if w.Severity == api.Critical {
			v.Critical++
		} else {
			v.Notices++
		}
	}
	v.MoreWarnings = max(0, len(all)-maxWarnings)
	v.Warnings = all[:len(all)-v.MoreWarnings]
}

// keyManager is a row of the table.
type keyManager struct {
	api.KeyManager
	Level   string // of its state
	Checked *moment
	Latency string
	Given   *given // nil while it was not tried with a key, or does not answer
	Server  *expiry
	Client  *expiry
}

func (v *view) addKeyManager(k api.KeyManager, now time.Time) {
	row := keyManager{KeyManager: k, Level: levelOK, Server: expires(k.Expires, now), Client: expires(k.ClientExpires, now)}
	switch k.State {
	case "ok":
		row.Latency, row.Given = milliseconds(k.LatencyMs), howGiven(k.Canary)
		if row.Given == nil || row.Given.Level != levelWarning {
			v.KeyManagersOK++
		}
	case "unknown":
		row.Level = levelNone
	default:
		row.Level = levelCritical
	}
	if k.Checked != nil {
		checked := since(*k.Checked, now)
		row.Checked = &checked
	}
	v.KeyManagers = append(v.KeyManagers, row)
}

// given is how a key manager gave the key that it was tried with.
type given struct{ Level, Text string }

// howGiven puts a result into words; nil if there is none. An answer that did not come says
// nothing of the key.
func howGiven(result string) *given {
	switch result {
	case "":
		return nil
	case "ok":
		return &given{levelOK, "given"}
	case "unreachable":
		return &given{levelNone, "no answer"}
	}
	return &given{levelWarning, result}
}

// vm is a line of the list.
type vm struct {
	api.VM
	ID      string // in the document
	Level   string
	Since   *moment
	Read    amount
	Written amount
	More    int // disks

	// Converting is the state of the first disk that is amid a conversion.
	Converting string
	rank       int
}

// The levels of what is shown: each has a colour and a sign.
const (
	levelCritical = "critical"
	levelWarning  = "warning"
	levelOK       = "ok"
	levelNone     = "none"
)

func (v *view) addVMs(all []api.VM, query url.Values, now time.Time) {
	v.VMCount = len(all)
	rows := make([]vm, 0, len(all))
	for _, each := range all {
		v.count(each.State)
		v.addConversions(each)
		rows = append(rows, newVM(each))
	}
	slices.SortStableFunc(rows, func(a, b vm) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), strings.Compare(a.Name, b.Name), strings.Compare(a.Descriptor, b.Descriptor))
	})
	v.VMs = v.choose(rows, query)
	for i := range v.VMs {
		v.VMs[i].fill(now)
	}
}

func (v *view) count(state string) {
	switch state {
	case api.Unlocked:
		v.Unlocked++
	case api.Restarting:
		v.Restarting++
	default:
		v.Locked++
	}
}

// The ranks of VMs in the list.
const (
	rankProblem = iota
	rankConverting
	rankUnlocked
	rankLocked
)

// newVM makes what the list is sorted by.
func newVM(each api.VM) vm {
	row := vm{VM: each, Level: levelNone, rank: rankLocked}
	if i := slices.IndexFunc(each.Disks, func(d api.Disk) bool { return d.Conversion != nil }); i >= 0 {
		row.Converting = each.Disks[i].Conversion.State
	}
	switch {
	case each.State == api.Restarting, each.State == api.Unlocked && each.Problem != "":
		row.Level, row.rank = levelCritical, rankProblem
	case row.Converting != "":
		row.rank = rankConverting
	case each.Problem != "":
		row.Level, row.rank = levelWarning, rankProblem
	case each.State == api.Unlocked:
		row.Level, row.rank = levelOK, rankUnlocked
	}
	return row
}

// fill makes what the list shows.
func (row *vm) fill(now time.Time) {
	sum := sha256.Sum256([]byte(row.Descriptor))
	row.ID = "vm-" + hex.EncodeToString(sum[:8])
	if row.VM.Since != nil {
		s := since(*row.VM.Since, now)
		row.Since = &s
	}
	var read, written uint64
	for _, d := range row.Disks {
		read, written = read+d.BytesRead, written+d.BytesWritten
	}
	row.Read, row.Written = size(read), size(written)
	row.More = max(0, len(row.Disks)-disksOfVM)
	row.Disks = row.Disks[:len(row.Disks)-row.More]
}

// choose takes the VMs that a page shows: where there are many, those that are locked and
// well only if they are asked for.
func (v *view) choose(rows []vm, query url.Values) []vm {
	all := query.Get("all") == "1"
	if first := slices.IndexFunc(rows, func(row vm) bool { return row.rank == rankLocked }); first >= 0 && len(rows) > fewVMs {
		if all {
			v.List.All = link(false, 1)
		} else {
			v.List.Hidden, v.List.All = len(rows)-first, link(true, 1)
			rows = rows[:first]
		}
	}
	v.List.Total = len(rows)
	pages := max(1, (len(rows)+vmsOnPage-1)/vmsOnPage)
	number, _ := strconv.Atoi(query.Get("page")) // else it is the first
	number = min(max(number, 1), pages)
	if number > 1 {
		v.List.Previous = link(all, number-1)
	}
	if number < pages {
		v.List.Next = link(all, number+1)
	}
	begin, end := (number-1)*vmsOnPage, min(number*vmsOnPage, len(rows))
	v.List.First, v.List.Last = begin+1, end
	return rows[begin:end]
}

// conversion is a disk amid one.
type conversion struct {
	api.Conversion
	VM, Descriptor, Node string
	Known                bool // how far it has come
	Percent              int64
	Size                 amount
	Command              string // that goes on with it
}

func (v *view) addConversions(each api.VM) {
	for _, d := range each.Disks {
		if d.Conversion == nil {
			continue
		}
		if v.Converting++; v.Converting > maxConversions {
			v.MoreConversions++
			continue
		}
		v.Conversions = append(v.Conversions, newConversion(each, d))
	}
}

// commands go on with the conversions of each state.
var commands = map[string]string{
	"encrypting": "vmcrypt encrypt", "decrypting": "vmcrypt decrypt", "rekeying": "vmcrypt rekey --deep",
}

func newConversion(each api.VM, d api.Disk) conversion {
	c := conversion{
		Conversion: *d.Conversion, VM: each.Name, Descriptor: each.Descriptor, Node: d.Node,
		Size: size(uint64(max(0, d.Conversion.SizeBytes))),
	}
	if command, ok := commands[c.State]; ok && !c.Running {
		c.Command = command + " " + quote(each.Descriptor)
	}
	if c.PositionBytes != nil && c.SizeBytes > 0 {
		c.Known = true
		done := min(max(*c.PositionBytes, 0), c.SizeBytes)
		c.Percent = int64(float64(done) / float64(c.SizeBytes) * 100)
	}
	return c
}
