package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/internal/ceiling"
	"github.com/vmcrypt/vmcrypt/internal/measure"
)

const (
	// inCacheSize is what each core works on unless said otherwise.
	inCacheSize = 1 << 20
	// inL1Size is what it works on sector by sector, and inL1Passes how often
	// for one sample.
	inL1Size, inL1Passes = 16 << 10, 32
	// inDRAMSize is more than any cache, and windowSize what one sample takes
	// of it.
	inDRAMSize, windowSize = 1 << 30, 2 << 20
	// roundTime is how long each of the three comparisons takes for a round.
	roundTime = 2 * time.Second
)

var sectorSizes = []int{512, 4096}

// The things that are measured.
const (
	encrypting    = "encrypt"
	decrypting    = "decrypt"
	onTwoCores    = "encrypt on two cores"
	fromDRAM      = "encrypt from DRAM"
	oneByOne      = "encrypt sector by sector from L1"
	aesAlone      = "the bare AES loop"
	xorFromDRAM   = "the XOR loop from DRAM"
	withoutSector = 0 // the sector size of the two loops
)

// byOpenSSL is who is not one of our engines.
const byOpenSSL = "OpenSSL"

// task is what has a speed.
type task struct {
	by, what   string
	sectorSize int
}

// kernelBench measures the engines.
type kernelBench struct {
	time    time.Duration // for each comparison
	openSSL *openSSL
	one     *measure.Team
	two     *measure.Team // nil where there is only one CPU
	buffers [2][]byte     // for the threads of a team
	// queue is what is measured next, speeds what was, in bytes per second.
	queue  []queued
	speeds map[task]float64
}

type queued struct {
	task    task
	bytes   int // in a sample
	sampler measure.Sampler
}

// measureKernels compares each engine that this CPU has with OpenSSL, and with
// loops that do less.
func measureKernels(ctx context.Context, rounds int) (tables []table, err error) {
	b, err := newKernelBench(ctx, time.Duration(rounds)*roundTime)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.measure(ctx, inDRAMSize); err != nil {
		return nil, err
	}
	return b.tables()
}

func newKernelBench(ctx context.Context, d time.Duration) (*kernelBench, error) {
	cpus := measure.CPUs()
	if len(cpus) == 0 {
		return nil, errors.New("the system does not tell which CPUs there are")
	}
	o, err := startOpenSSL(ctx, cpus[0]) // like the first of a team
	if err != nil {
		return nil, err
	}
	b := &kernelBench{time: d, openSSL: o, one: measure.NewTeam(1), speeds: make(map[task]float64)}
	if min(len(cpus), runtime.GOMAXPROCS(0)) > 1 {
		b.two = measure.NewTeam(2)
	}
	for i := range b.buffers {
		b.buffers[i] = make([]byte, inCacheSize)
	}
	return b, nil
}

func (b *kernelBench) close() error {
	b.one.Close()
	if b.two != nil {
		b.two.Close()
	}
	return b.openSSL.close()
}

// measure compares in cache, in the first level of it, and in as much memory.
func (b *kernelBench) measure(ctx context.Context, inDRAM int) error {
	for _, enqueue := range []func() error{b.inCache, b.inL1} {
		if err := errors.Join(enqueue(), b.work(ctx)); err != nil {
			return err
		}
	}
	d, err := newDRAM(inDRAM)
	if err != nil {
		return err
	}
	defer d.free()
	return errors.Join(b.inDRAM(d), b.work(ctx))
}

func (b *kernelBench) add(t task, bytes int, s measure.Sampler) {
	b.queue = append(b.queue, queued{t, bytes, s})
}

// work measures what is in the queue.
func (b *kernelBench) work(ctx context.Context) error {
	log.Printf("measuring %d speeds for %v", len(b.queue), b.time)
	samplers := make([]measure.Sampler, len(b.queue))
	for i, q := range b.queue {
		samplers[i] = q.sampler
	}
	medians, err := measure.Medians(ctx, b.time, samplers...)
	for i, median := range medians {
		b.speeds[b.queue[i].task] = float64(b.queue[i].bytes) / median.Seconds()
	}
	b.queue = nil
	return err
}

// forEach calls f with the ciphers of each engine that this CPU has.
func forEach(f func(e blockcrypt.Engine, c *blockcrypt.Cipher)) error {
	for _, e := range blockcrypt.Engines() {
		if e.Missing() != "" {
			continue
		}
		for _, sectorSize := range sectorSizes {
			c, err := e.NewCipher(benchKey(), sectorSize)
			if err != nil {
				return err
			}
			f(e, c)
		}
	}
	return nil
}

// inCache measures all that works on a buffer in cache.
func (b *kernelBench) inCache() error {
	for _, size := range sectorSizes {
		for _, op := range []string{encrypting, decrypting} {
			b.add(task{byOpenSSL, op, size}, inCacheSize, b.openSSL.sampler(op, size, inCacheSize, 1))
		}
	}
	for _, e := range blockcrypt.Engines() {
		if loops, ok := ceiling.Of(e.Name()); ok && e.Missing() == "" {
			b.add(task{e.Name(), aesAlone, withoutSector}, inCacheSize, b.one.Sampler(b.inPlace(without(loops.Encrypt))))
		}
	}
	return forEach(func(e blockcrypt.Engine, c *blockcrypt.Cipher) {
		encrypt, decrypt := b.inPlace(inPlace(c.Encrypt)), b.inPlace(inPlace(c.Decrypt))
		b.add(task{e.Name(), encrypting, c.SectorSize()}, inCacheSize, b.one.Sampler(encrypt))
		b.add(task{e.Name(), decrypting, c.SectorSize()}, inCacheSize, b.one.Sampler(decrypt))
		if b.two != nil {
			b.add(task{e.Name(), onTwoCores, c.SectorSize()}, 2*inCacheSize, b.two.Sampler(encrypt))
		}
	})
}

// inPlace is the work of a team on its buffers.
func (b *kernelBench) inPlace(do func(p []byte) error) measure.Work {
	onBuffer := func(core int) error { return do(b.buffers[core]) }
	return measure.Work{Prepare: onBuffer, Do: onBuffer}
}

func inPlace(crypt func(dst, src []byte, off int64) error) func(p []byte) error {
	return func(p []byte) error { return crypt(p, p, 0) }
}

// without is a loop, which can't fail.
func without(loop func(p []byte)) func(p []byte) error {
	return func(p []byte) error { loop(p); return nil }
}

// inL1 measures the fastest engine with a call for each sector.
func (b *kernelBench) inL1() error {
	engine, err := blockcrypt.Fastest()
	if err != nil {
		return err
	}
	for _, size := range sectorSizes {
		c, err := engine.NewCipher(benchKey(), size)
		if err != nil {
			return err
		}
		do := func(int) error { return sectorBySector(c, b.buffers[0][:inL1Size]) }
		const bytes = inL1Size * inL1Passes
		b.add(task{engine.Name(), oneByOne, size}, bytes, b.one.Sampler(measure.Work{Prepare: do, Do: do}))
		b.add(task{byOpenSSL, oneByOne, size}, bytes, b.openSSL.sampler(encrypting, size, inL1Size, inL1Passes))
	}
	return nil
}

func sectorBySector(c *blockcrypt.Cipher, p []byte) error {
	size := c.SectorSize()
	for range inL1Passes {
		for at := 0; at < len(p); at += size {
			sector := p[at : at+size]
			if err := c.Encrypt(sector, sector, int64(at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// inDRAM measures what works on one window of memory after the other.
func (b *kernelBench) inDRAM(d *dram) error {
	for _, e := range blockcrypt.Engines() {
		if loops, ok := ceiling.Of(e.Name()); ok && e.Missing() == "" {
			b.add(task{e.Name(), xorFromDRAM, withoutSector}, windowSize, b.one.Sampler(d.work(without(loops.XOR))))
		}
	}
	return forEach(func(e blockcrypt.Engine, c *blockcrypt.Cipher) {
		b.add(task{e.Name(), fromDRAM, c.SectorSize()}, windowSize, b.one.Sampler(d.work(inPlace(c.Encrypt))))
	})
}

// dram is memory of which the next window is in no cache.
type dram struct {
	memory []byte
	at     int
	warm   []byte
}

// newDRAM maps memory in huge pages, so that what is measured is not the
// translation of addresses.
func newDRAM(size int) (*dram, error) {
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	_ = unix.Madvise(memory, unix.MADV_HUGEPAGE) // a kernel may have none
	touchPages(memory)
	return &dram{memory: memory, warm: make([]byte, inL1Size)}, nil
}

func (d *dram) free() { _ = unix.Munmap(d.memory) } // it was mapped

// work does something to the next window. Before that its pages are touched, as
// the host may have taken them back, and the CPU does the same in its cache.
func (d *dram) work(do func(p []byte) error) measure.Work {
	return measure.Work{
		Prepare: func(int) error {
			touchPages(d.window())
			return do(d.warm)
		},
		Do: func(int) error {
			window := d.window()
			d.at = (d.at + windowSize) % len(d.memory)
			return do(window)
		},
	}
}

func (d *dram) window() []byte { return d.memory[d.at : d.at+windowSize] }

func touchPages(p []byte) {
	const page = 4096
	for at := 0; at < len(p); at += page {
		p[at]++
	}
}
