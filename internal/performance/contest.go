package main

import (
	"context"
	"fmt"
	"log"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// contestant is a program that takes part in a comparison.
type contestant struct {
	name    string
	prepare func(ctx context.Context) error // not timed
	command []string
}

// result is what one run of a contestant took.
type result struct {
	wall, cpu time.Duration
	rss       int64 // the most memory at once, in bytes
}

// contest has all take turns, and gives the results of each by name, in the
// order of the rounds.
func contest(ctx context.Context, rounds int, contestants []contestant) (map[string][]result, error) {
	results := make(map[string][]result)
	for range rounds {
		for _, c := range contestants {
			r, err := c.run(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			log.Printf("%-40s wall %6.3f s, CPU %6.3f s, %3d MiB", c.name, r.wall.Seconds(), r.cpu.Seconds(), r.rss>>20)
			results[c.name] = append(results[c.name], r)
		}
	}
	return results, nil
}

// compare finds the best of several ways to run another program and has it
// compete with us. It gives the results and the name of that way.
func compare(ctx context.Context, rounds int, us, ways []contestant) (map[string][]result, string, error) {
	trial, err := contest(ctx, min(rounds, 2), ways)
	if err != nil {
		return nil, "", err
	}
	best := ways[0]
	for _, c := range ways {
		if median(trial[c.name], wall) < median(trial[best.name], wall) {
			best = c
		}
	}
	results, err := contest(ctx, rounds, append(us, best))
	return results, best.name, err
}

// called is the name of a contestant: its program and what is special about how
// it is run.
func called(program string, mode []string) string {
	return strings.Join(append([]string{program}, mode...), " ")
}

func (c contestant) run(ctx context.Context) (result, error) {
	if c.prepare != nil {
		if err := c.prepare(ctx); err != nil {
			return result{}, err
		}
	}
	return run(ctx, c.command)
}

// run runs a command to its end. What it uses is counted with the processes that
// it waited for itself.
func run(ctx context.Context, command []string) (result, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // the commands of this package
	begin := time.Now()
	output, err := cmd.CombinedOutput()
	wall := time.Since(begin)
	if err != nil {
		return result{}, fmt.Errorf("%v: %w\n%s", command, err, output)
	}
	used := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return result{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), used.Maxrss << 10}, nil
}

// measurand is one of the figures of a result.
type measurand func(result) float64

func wall(r result) float64 { return r.wall.Seconds() }
func cpu(r result) float64  { return r.cpu.Seconds() }
func mib(r result) float64  { return float64(r.rss) / (1 << 20) }

func median(results []result, of measurand) float64 {
	values := make([]float64, len(results))
	for i, r := range results {
		values[i] = of(r)
	}
	return middle(values)
}

// ratio compares two contestants round by round, and gives the median.
func ratio(a, b []result, of measurand) float64 {
	values := make([]float64, len(a))
	for i := range a {
		values[i] = of(a[i]) / of(b[i])
	}
	return middle(values)
}

func middle(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
