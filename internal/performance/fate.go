package main

import (
	"fmt"
	"slices"
	"strconv"
)

const (
	// hedgeAfter is the default of the configuration, and hedgedMore what 99 % of the unlocks
	// may take besides, in ms.
	hedgeAfter, hedgedMore = 2000, 250
	// connectionsAtOnce are the default of maxConnections, and one of the health check.
	connectionsAtOnce = 5
	// killedMore is what the median of the unlocks may grow by when a key manager dies, in ms.
	killedMore = 5
)

// fate is what the rounds with one accident came to. Times are in ms.
type fate struct {
	lost                int
	before, after, more float64 // medians of the rounds' medians; more is than the calm VMs
	least, greatest     float64 // of what more is the median of
	// Of the worst round: 99 % of all, 99 % of those after the accident, and all.
	most, mostAfter, all float64
	hedged               int // that took longer than hedgeAfter
	atOnce, made         [replicaCount]int
}

func fateOf(rounds []*storm) (f fate) {
	var befores, afters, more []float64
	for _, r := range rounds {
		before, after, calm := r.times()
		befores, afters = append(befores, middle(before)), append(afters, middle(after))
		more = append(more, middle(after)-middle(calm))
		f.lost += r.lost()
		f.worst(before, after)
		for k := range replicaCount {
			f.atOnce[k], f.made[k] = max(f.atOnce[k], r.most[k]), max(f.made[k], r.connects[k])
		}
	}
	f.before, f.after, f.more = middle(befores), middle(afters), middle(more)
	f.least, f.greatest = slices.Min(more), slices.Max(more)
	return f
}

// worst adds a round.
func (f *fate) worst(before, after []float64) {
	all := slices.Concat(before, after)
	f.most, f.mostAfter, f.all = max(f.most, percentile99(all)), max(f.mostAfter, percentile99(after)), max(f.all, slices.Max(all))
	hedged := 0
	for _, took := range all {
		if took > hedgeAfter {
			hedged++
		}
	}
	f.hedged = max(f.hedged, hedged)
}

// percentile99 is what 99 % of the values are not above.
func percentile99(values []float64) float64 {
	slices.Sort(values)
	return values[(len(values)*99+99)/100-1]
}

// failoverTables has the rounds of each accident.
func failoverTables(storms [][]*storm) []table {
	title := fmt.Sprintf("%d VMs, %d unlocks at once, %d rounds; half-way the first of %d key managers fails. Medians in ms, and then what is worst in any round:",
		manyVMs, stormWorkers, len(storms[0]), replicaCount)
	times := table{title, []string{"", "median before", "after", "more than the others (rounds)", "99 % within", "99 % of those after", "all", "longer than hedgeAfter", "lost"}, nil}
	used := table{"Connections of the agent to each key manager, at once / made or tried in all, most in any round:", []string{"", "first", "second", "third"}, nil}
	var fates []fate
	for i, rounds := range storms {
		f := fateOf(rounds)
		times.rows = append(times.rows, f.times(accidents[i].name))
		used.rows = append(used.rows, f.connections(accidents[i].name))
		fates = append(fates, f)
	}
	return []table{times, used, {"Against the targets:", []string{"", "is", "at most", "met"}, failoverVerdicts(fates)}}
}

func (f fate) times(name string) []string {
	tenths := func(v float64) string { return fmt.Sprintf("%.1f", v) }
	return []string{
		name, tenths(f.before), tenths(f.after), fmt.Sprintf("%.1f (%.1f to %.1f)", f.more, f.least, f.greatest),
		tenths(f.most), tenths(f.mostAfter), tenths(f.all), strconv.Itoa(f.hedged), strconv.Itoa(f.lost),
	}
}

func (f fate) connections(name string) []string {
	row := []string{name}
	for k := range replicaCount {
		row = append(row, fmt.Sprintf("%d / %d", f.atOnce[k], f.made[k]))
	}
	return row
}

// failoverVerdicts are about accidents in their order.
func failoverVerdicts(fates []fate) (rows [][]string) {
	lost, atOnce := 0, 0
	for _, f := range fates {
		lost, atOnce = lost+f.lost, max(atOnce, slices.Max(f.atOnce[:]))
	}
	rows = append(rows, atMost("unlocks lost", float64(lost), 0),
		atMost(accidents[1].name+": median, ms more", fates[1].more, killedMore))
	for i, f := range fates[2:] {
		rows = append(rows, atMost(accidents[2+i].name+": 99 %, ms", f.most, hedgeAfter+hedgedMore))
	}
	return append(rows, atMost("connections to one key manager at once", float64(atOnce), connectionsAtOnce))
}
