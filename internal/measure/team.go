package measure

import (
	"errors"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Work is what each thread of a Team does, which is told its number.
type Work struct {
	// Prepare is not timed: it brings what Do needs into memory or cache, where
	// other processes, or other guests of the same host, may have taken it from.
	// It is called once or several times.
	Prepare func(core int) error
	// Do is timed.
	Do func(core int) error
}

// Team is threads that do the same work at the same time, each on its own CPU.
// Only one goroutine may use it.
type Team struct {
	work []chan Work // one for each thread
	done chan span
	// ready counts the threads that have prepared.
	ready atomic.Int32
}

// span is how long one thread worked.
type span struct {
	begin, end time.Time
	err        error
}

// NewTeam makes a Team of as many threads. There should be as many CPUs.
func NewTeam(cores int) *Team {
	t := &Team{work: make([]chan Work, cores), done: make(chan span, cores)}
	cpus := CPUs()
	for core := range t.work {
		t.work[core] = make(chan Work, 1)
		go t.member(core, cpus)
	}
	return t
}

// Close ends the threads.
func (t *Team) Close() {
	for _, w := range t.work {
		close(w)
	}
}

// Sampler gives a Sampler of the time in which all have done w.
func (t *Team) Sampler(w Work) Sampler {
	return func() (time.Duration, error) {
		t.ready.Store(0)
		for _, ch := range t.work {
			ch <- w
		}
		all := <-t.done
		for range len(t.work) - 1 {
			all = all.join(<-t.done)
		}
		return all.end.Sub(all.begin), all.err
	}
}

// join gives the time from the first that begins to the last that ends.
func (s span) join(o span) span {
	if o.begin.Before(s.begin) {
		s.begin = o.begin
	}
	if o.end.After(s.end) {
		s.end = o.end
	}
	return span{s.begin, s.end, errors.Join(s.err, o.err)}
}

// member is a thread. It stays locked, so that the thread ends with it and takes
// its CPU affinity along.
func (t *Team) member(core int, cpus []int) {
	runtime.LockOSThread()
	if core < len(cpus) {
		pin(cpus[core])
	}
	for w := range t.work[core] {
		t.done <- t.take(core, w)
	}
}

// take does w once all are prepared. It waits for them without sleeping: being
// woken would take longer than the work.
func (t *Team) take(core int, w Work) span {
	err := settle(w, core)
	t.ready.Add(1)
	for t.ready.Load() < int32(len(t.work)) {
		continue
	}
	begin := time.Now()
	if err == nil {
		err = w.Do(core)
	}
	return span{begin, time.Now(), err}
}

// settling is longer than what happens on a CPU after a thread was woken up: the
// scheduler moves others away, and vector units and clock speed up. It would be
// half of a sample.
const settling = 100 * time.Microsecond

// settle prepares for a while, and at least once.
func settle(w Work, core int) error {
	for begin := time.Now(); ; {
		if err := w.Prepare(core); err != nil || time.Since(begin) >= settling {
			return err
		}
	}
}

// CPUs are the numbers of the CPUs that this process may use, nothing if the
// system doesn't tell. The threads of a Team are on the first of them.
func CPUs() []int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil
	}
	var cpus []int
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// pin keeps the calling thread on a CPU. Without that the measurement is only less
// exact.
func pin(cpu int) {
	var set unix.CPUSet
	set.Set(cpu)
	_ = unix.SchedSetaffinity(0, &set) // see above
}
