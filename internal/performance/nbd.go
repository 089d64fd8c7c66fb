package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/nbd"
)

// The servers that are compared with others.
const (
	servedEncrypted = "vmcrypt serve"
	servedPlain     = "the same server, no cipher"
	nbdkitFile      = "nbdkit file, no cipher"
	nbdkitLUKS      = "nbdkit file, luks filter"
	noServer        = "the file itself, no cipher"
)

// load is what fio has a server do.
type load struct {
	name    string
	args    []string
	prepare func(disk *os.File) error // before, with the server's file
}

// servedSize is how much of a disk a load works on, in bytes.
const servedSize = 1 << 30

var (
	randomRead32  = load{"4 KiB random read, depth 32", []string{"--rw=randread", "--bs=4k", "--iodepth=32"}, cacheForRandom}
	randomRead1   = load{"4 KiB random read, depth 1", []string{"--rw=randread", "--bs=4k", "--iodepth=1"}, cacheForRandom}
	randomWrite32 = load{"4 KiB random write, depth 32", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, cacheForRandom}
	largeRead     = load{"1 MiB sequential read, depth 4", []string{"--rw=read", "--bs=1m", "--iodepth=4"}, cache}
	largeWrite    = load{"1 MiB sequential write, depth 4", []string{"--rw=write", "--bs=1m", "--iodepth=4"}, cache}
	coldRead128   = load{"4 KiB random read, depth 128, not in the page cache", []string{"--rw=randread", "--bs=4k", "--iodepth=128"}, uncache}
)

// server is a program that serves a disk over NBD.
type server struct {
	name    string
	disk    string   // the file that it serves
	command []string // SOCKET stands for the path of its socket
	export  string

	socket string
	cmd    *exec.Cmd
}

// performance is what fio and the kernel say of one run.
type performance struct {
	perSecond float64 // operations
	cpu       float64 // of the server, in seconds for each operation
}

// measureNBD compares how fast disks are served.
func measureNBD(ctx context.Context, rounds int) ([]table, error) {
	w, err := openWorkshop(ctx)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(w.folder)
	if err := w.prepareServed(ctx); err != nil {
		return nil, err
	}
	var tables []table
	var targets [][]string
	for _, part := range []func(context.Context, int) (table, [][]string, error){w.pinned, w.unpinned, w.cold} {
		t, rows, err := part(ctx, rounds)
		if err != nil {
			return nil, err
		}
		tables, targets = append(tables, t), append(targets, rows...)
	}
	return append(tables, table{"Against the targets (medians of the ratios of each round):", []string{"", "is", "target", "met"}, targets}), nil
}

// prepareServed makes the same disk thrice: plain, encrypted, and in LUKS by QEMU.
func (w workshop) prepareServed(ctx context.Context) error {
	if err := makeDisk(w.in("dense"), extentSize); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"truncate", "--size", strconv.Itoa(servedSize), w.in("dense")},
		{ourBinary, "encrypt", w.in("dense"), "--output", w.in("served")},
		{"qemu-img", "create", "-q", "--object", "secret,id=pass,file=" + w.in("passphrase"), "-f", "luks",
			"-o", "key-secret=pass,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,iter-time=10", w.in("served.luks"), strconv.Itoa(servedSize)},
		append(w.qemuConvert(qemuModes[0]), w.toLUKS("dense", "served.luks")...),
	} {
		if _, err := run(ctx, command); err != nil {
			return err
		}
	}
	return nil
}

func (w workshop) ours() *server {
	return &server{name: servedEncrypted, disk: w.in("served"), export: "scsi0:0", command: []string{ourBinary, "serve", w.in("served"), "--socket", "SOCKET"}}
}

func (w workshop) oursPlain() (*server, error) {
	program, err := os.Executable() // not by /proc/self, which would be taskset
	command := self("serve", w.in("dense"), "SOCKET")
	command[0] = program
	return &server{name: servedPlain, disk: w.in("dense"), command: command}, err
}

func (w workshop) nbdkit() *server {
	return &server{name: nbdkitFile, disk: w.in("dense"), command: []string{"nbdkit", "-f", "-U", "SOCKET", "file", w.in("dense")}}
}

func (w workshop) nbdkitLUKS() *server {
	return &server{name: nbdkitLUKS, disk: w.in("served.luks"), command: []string{
		"nbdkit", "-f", "-U", "SOCKET", "--filter=luks", "file", w.in("served.luks"), "passphrase=+" + w.in("passphrase")}}
}

// qemuNBDModes are those ways to run qemu-nbd of which the best counts.
var qemuNBDModes = [][]string{
	{"--cache=writeback", "--aio=threads"}, {"--cache=writeback", "--aio=io_uring"},
	{"--cache=none", "--aio=native"}, {"--cache=none", "--aio=io_uring"}, {"--cache=none", "--aio=threads"},
}

func (w workshop) qemuNBD() (all []*server) {
	for _, mode := range qemuNBDModes {
		all = append(all, &server{
			name: called("qemu-nbd", mode), disk: w.in("served.luks"),
			command: append([]string{"qemu-nbd", "--persistent", "--shared=0", "--socket=SOCKET", "--object", "secret,id=pass,file=" + w.in("passphrase"),
				"--image-opts", "driver=luks,key-secret=pass,file.locking=off,file.filename=" + w.in("served.luks")}, mode...),
		})
	}
	return all
}

// pinned has client and server share one CPU.
func (w workshop) pinned(ctx context.Context, rounds int) (table, [][]string, error) {
	plain, err := w.oursPlain()
	if err != nil {
		return table{}, nil, err
	}
	servers := []*server{w.ours(), plain, w.nbdkit()}
	loads := []load{randomRead32, randomRead1, randomWrite32, largeRead, largeWrite}
	results, err := w.compete(ctx, rounds, servers, loads, []string{"taskset", "-c", "1"})
	if err != nil {
		return table{}, nil, err
	}
	var rows [][]string
	for i, limit := range []float64{1.15, 1, 0.9, 1, 1} {
		rows = append(rows, atLeast(loads[i].name+", one CPU, nbdkit file = 1", results.ratio(nbdkitFile, loads[i], perSecond), limit))
	}
	return results.table("Client and server on one CPU", servers, loads), rows, nil
}

// unpinned has the best of others' servers with a cipher compete.
func (w workshop) unpinned(ctx context.Context, rounds int) (table, [][]string, error) {
	loads := []load{randomRead32, randomWrite32, largeRead, largeWrite}
	qemu, err := w.bestOf(ctx, w.qemuNBD(), randomRead32)
	if err != nil {
		return table{}, nil, err
	}
	plain, err := w.oursPlain()
	if err != nil {
		return table{}, nil, err
	}
	servers := []*server{w.ours(), plain, qemu, w.nbdkitLUKS()}
	results, err := w.compete(ctx, rounds, servers, loads, nil)
	if err != nil {
		return table{}, nil, err
	}
	var rows [][]string
	for i, limit := range []float64{4, 3, 3, 3} {
		rows = append(rows, atLeast(loads[i].name+", qemu-nbd = 1", results.ratio(qemu.name, loads[i], perSecond), limit))
	}
	for _, l := range loads {
		rows = append(rows, atMost("CPU time of the server, "+l.name+", qemu-nbd = 1", results.ratio(qemu.name, l, cpuTime), 0.3))
	}
	for _, l := range loads {
		rows = append(rows, atLeast(l.name+", nbdkit with the luks filter = 1", results.ratio(nbdkitLUKS, l, perSecond), 1.4))
	}
	for _, l := range loads {
		rows = append(rows, atLeast(l.name+", without the cipher = 1", results.ratio(servedPlain, l, perSecond), 0.95))
	}
	return results.table("Client and server on all CPUs", servers, loads), rows, nil
}

// cold reads what is not in the page cache.
func (w workshop) cold(ctx context.Context, rounds int) (table, [][]string, error) {
	qemu, err := w.bestOf(ctx, w.qemuNBD(), coldRead128)
	if err != nil {
		return table{}, nil, err
	}
	servers := []*server{w.ours(), qemu, {name: noServer, disk: w.in("dense")}}
	loads := []load{coldRead128}
	results, err := w.compete(ctx, rounds, servers, loads, nil)
	if err != nil {
		return table{}, nil, err
	}
	return results.table("Not in the page cache", servers, loads), [][]string{
		atLeast(coldRead128.name+", qemu-nbd = 1", results.ratio(qemu.name, coldRead128, perSecond), 2),
		atLeast(coldRead128.name+", the file itself = 1", results.ratio(noServer, coldRead128, perSecond), 0.9),
	}, nil
}

// bestOf finds the server that is best at a load.
func (w workshop) bestOf(ctx context.Context, servers []*server, l load) (*server, error) {
	results, err := w.compete(ctx, 2, servers, []load{l}, nil)
	if err != nil {
		return nil, err
	}
	best := servers[0]
	for _, s := range servers {
		if results.median(s.name, l, perSecond) > results.median(best.name, l, perSecond) {
			best = s
		}
	}
	return best, nil
}

// performances are those of each server at each load, in the order of the rounds.
type performances map[string]map[string][]performance

// compete has all servers do all loads in turn. They run all the time; idle, they
// take nothing. Pin goes before the commands of servers and clients.
func (w workshop) compete(ctx context.Context, rounds int, servers []*server, loads []load, pin []string) (performances, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i, s := range servers {
		if err := s.start(ctx, w.in(fmt.Sprintf("s%d", i)), pin); err != nil {
			return nil, err
		}
		defer s.stop()
	}
	results := performances{}
	for range rounds {
		for _, l := range loads {
			for _, s := range servers {
				p, err := w.run(ctx, s, l, pin)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", s.name, l.name, err)
				}
				log.Printf("%-45s %-35s %9.0f/s, CPU %6.1f µs", s.name, l.name, p.perSecond, p.cpu*1e6)
				if results[s.name] == nil {
					results[s.name] = map[string][]performance{}
				}
				results[s.name][l.name] = append(results[s.name][l.name], p)
			}
		}
	}
	return results, nil
}

// start returns when the server's socket is there.
func (s *server) start(ctx context.Context, socket string, pin []string) error {
	s.socket = socket
	if s.command == nil {
		return nil
	}
	os.Remove(socket) // of another server, perhaps
	command := append([]string{}, pin...)
	for _, word := range s.command {
		command = append(command, strings.ReplaceAll(word, "SOCKET", socket))
	}
	s.cmd = exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // the commands of this package
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not listen", s.name)
		}
	}
}

func (s *server) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
	_ = s.cmd.Wait()                          // of a server that was told to end
}

// loadTime is how long fio applies a load, and before that without counting.
const (
	loadTime = 3 * time.Second
	rampTime = time.Second
)

// run has a server bear a load. It begins and ends with its file outside of the page
// cache: what earlier loads have left there has no part in it.
func (w workshop) run(ctx context.Context, s *server, l load, pin []string) (performance, error) {
	f, err := os.Open(s.disk)
	if err != nil {
		return performance{}, err
	}
	defer f.Close()
	if err := errors.Join(uncache(f), l.prepare(f)); err != nil {
		return performance{}, err
	}
	p, err := s.bear(ctx, l, pin)
	return p, errors.Join(err, uncache(f))
}

// bear has fio apply a load to the server.
func (s *server) bear(ctx context.Context, l load, pin []string) (performance, error) {
	args := append(append([]string{}, pin...), "fio", "--name=load", "--output-format=json", "--time_based", "--randrepeat=0",
		fmt.Sprintf("--size=%d", servedSize), "--runtime="+loadTime.String(), "--ramp_time="+rampTime.String())
	args = append(args, l.args...)
	if s.command == nil {
		args = append(args, "--ioengine=libaio", "--direct=1", "--filename="+s.disk)
	} else {
		args = append(args, "--ioengine=nbd", "--uri=nbd+unix:///"+s.export+"?socket="+s.socket)
	}
	before := s.used()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output() //nolint:gosec // the commands of this package
	if err != nil {
		return performance{}, fmt.Errorf("fio: %w: %s", err, out)
	}
	return parseFio(out, s.used()-before)
}

// uncache takes a file out of the page cache.
func uncache(f *os.File) error {
	return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// cache brings a file into the page cache.
func cache(f *os.File) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, f, make([]byte, 1<<20))
	return err
}

// cacheForRandom has the page cache hold a file as it does after random access, page
// by page. After sequential access, ext4 would spend most of the time of a random
// write on the neighbours of the page, in the same folio, and servers little.
func cacheForRandom(f *os.File) error {
	return errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM), cache(f))
}

// used is the CPU time that the server has taken so far: utime and stime of
// proc_pid_stat(5), in hundredths of a second.
func (s *server) used() time.Duration {
	if s.cmd == nil {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// parseFio takes what a server did for a client, and the CPU time that it took.
func parseFio(out []byte, used time.Duration) (performance, error) {
	_, out, _ = bytes.Cut(out, []byte("{")) // there are words before it
	var report struct {
		Jobs []struct {
			Error       int
			Read, Write struct {
				IOPS float64
			}
		}
	}
	if err := json.Unmarshal(append([]byte("{"), out...), &report); err != nil {
		return performance{}, fmt.Errorf("fio's report: %w", err)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		return performance{}, fmt.Errorf("fio failed: %s", out)
	}
	rate := report.Jobs[0].Read.IOPS + report.Jobs[0].Write.IOPS
	return performance{rate, used.Seconds() / (rate * (loadTime + rampTime).Seconds())}, nil
}

func perSecond(p performance) float64 { return p.perSecond }
func cpuTime(p performance) float64   { return p.cpu }

func (r performances) values(server string, l load, of func(performance) float64) (values []float64) {
	for _, p := range r[server][l.name] {
		values = append(values, of(p))
	}
	return values
}

func (r performances) median(server string, l load, of func(performance) float64) float64 {
	return middle(r.values(server, l, of))
}

// ratio compares our server with another round by round, and gives the median.
func (r performances) ratio(other string, l load, of func(performance) float64) float64 {
	values, others := r.values(servedEncrypted, l, of), r.values(other, l, of)
	for i := range values {
		values[i] /= others[i]
	}
	return middle(values)
}

// table has a row for each load, and in it each server's operations in a second and
// what it takes of a CPU for one of them.
func (r performances) table(title string, servers []*server, loads []load) table {
	t := table{title + ", operations in a second (CPU time of the server for each):", []string{""}, nil}
	for _, s := range servers {
		t.header = append(t.header, s.name)
	}
	for _, l := range loads {
		row := []string{l.name}
		for _, s := range servers {
			cell := fmt.Sprintf("%.0f", r.median(s.name, l, perSecond))
			if s.command != nil {
				cell += fmt.Sprintf(" (%.1f µs)", r.median(s.name, l, cpuTime)*1e6)
			}
			row = append(row, cell)
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// serve serves a plain disk as vmcrypt serves encrypted ones, until it is told to end.
func serve(disk, socket string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	f, err := image.Open(disk, image.Raw, image.ReadWrite)
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := nbd.New(nbd.Export{Name: filepath.Base(disk), Disk: f})
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	nbd.SpareProcessor()
	return s.Serve(ctx, l)
}
