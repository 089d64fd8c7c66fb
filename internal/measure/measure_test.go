package measure

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// script is a Sampler that gives these samples, the last one for ever.
func script(calls *[]string, name string, took ...time.Duration) Sampler {
	return func() (time.Duration, error) {
		*calls = append(*calls, name)
		d := took[0]
		if len(took) > 1 {
			took = took[1:]
		}
		return d, nil
	}
}

func TestMediansTakesTurns(t *testing.T) {
	var calls []string
	begin := time.Now()
	got, err := Medians(t.Context(), 10*time.Millisecond,
		script(&calls, "a", 1000, 7), script(&calls, "b", 1, 9))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 10*time.Millisecond {
		t.Errorf("it measured for %v only", took)
	}
	if want := []time.Duration{7, 9}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v: a single sample that is far off must not count", got, want)
	}
	if !slices.Equal(calls[:4], []string{"a", "b", "a", "b"}) {
		t.Errorf("called %v...", calls[:4])
	}
}

func TestMediansMeasuresAtLeastOnce(t *testing.T) {
	var calls []string
	got, err := Medians(t.Context(), 0, script(&calls, "a", 5))
	if err != nil || len(got) != 1 || got[0] != 5 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestMediansEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var calls []string
	if _, err := Medians(ctx, time.Hour, script(&calls, "a", 5)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestTeamWorksAtOnce(t *testing.T) {
	const cores = 3
	team := NewTeam(cores)
	defer team.Close()
	var busy, done atomic.Int32
	sample := team.Sampler(Work{
		Prepare: func(int) error {
			busy.Add(1)
			defer busy.Add(-1)
			time.Sleep(time.Millisecond)
			return nil
		},
		Do: func(int) error {
			if busy.Load() != 0 {
				return errors.New("one began before the others were ready")
			}
			done.Add(1)
			time.Sleep(5 * time.Millisecond)
			return nil
		},
	})
	for i := range int32(3) {
		took, err := sample()
		if err != nil || took < 5*time.Millisecond {
			t.Errorf("took %v, %v", took, err)
		}
		if done.Load() != cores*(i+1) {
			t.Errorf("%d did the work, want %d", done.Load(), cores*(i+1))
		}
	}
}

func TestTeamTellsErrors(t *testing.T) {
	team := NewTeam(2)
	defer team.Close()
	broken := errors.New("broken")
	nothing := func(int) error { return nil }
	second := func(core int) error {
		if core == 1 {
			return broken
		}
		return nil
	}
	for name, w := range map[string]Work{"prepare": {second, nothing}, "do": {nothing, second}} {
		if _, err := Medians(t.Context(), 0, team.Sampler(w)); !errors.Is(err, broken) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestSpanJoin(t *testing.T) {
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	got := span{begin: at(2), end: at(5)}.join(span{begin: at(1), end: at(4)})
	if got.end.Sub(got.begin) != 4*time.Second {
		t.Errorf("got %v", got)
	}
}
