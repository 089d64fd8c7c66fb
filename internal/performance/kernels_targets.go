package main

import (
	"fmt"
	"runtime"
	"strconv"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
)

// demand is how fast an engine should be, against what it is compared with.
// Zero demands nothing.
type demand struct {
	engine string
	// openSSL is for sectors of 512 and 4096 bytes, the others for both.
	openSSL                          [2]float64
	aesLoop, decrypt, twoCores, dram float64
}

var demands = []demand{
	{engine: "vaes-avx512", openSSL: [2]float64{4, 2.5}, aesLoop: 0.9, decrypt: 0.95, twoCores: 1.75, dram: 0.85},
	{engine: "vaes-avx2", openSSL: [2]float64{2.5, 1.4}},
	{engine: "aes-ni", openSSL: [2]float64{1.9, 1.1}},
}

// oneByOneDemand is that of the fastest engine with a call for each sector.
var oneByOneDemand = [2]float64{2.6, 2.2}

// comparison is of two speeds.
type comparison struct {
	what     string
	of, with task
	atLeast  float64
}

// comparisons of one engine.
func (d demand) comparisons() (all []comparison) {
	for i, size := range sectorSizes {
		sectors := fmt.Sprintf("%d-byte sectors", size)
		encrypt := task{d.engine, encrypting, size}
		all = append(all,
			comparison{"encrypt, " + sectors + ", OpenSSL = 1", encrypt, task{byOpenSSL, encrypting, size}, d.openSSL[i]},
			comparison{"encrypt, " + sectors + ", the bare AES loop = 1", encrypt, task{d.engine, aesAlone, withoutSector}, d.aesLoop},
			comparison{"decrypt, " + sectors + ", encrypt = 1", task{d.engine, decrypting, size}, encrypt, d.decrypt},
			comparison{"two cores, " + sectors + ", one = 1", task{d.engine, onTwoCores, size}, encrypt, d.twoCores},
			comparison{"from DRAM, " + sectors + ", the XOR loop = 1", task{d.engine, fromDRAM, size}, task{d.engine, xorFromDRAM, withoutSector}, d.dram})
	}
	return all
}

// tables are the speeds and what they are compared with.
func (b *kernelBench) tables() ([]table, error) {
	fastest, err := blockcrypt.Fastest()
	if err != nil {
		return nil, err
	}
	targets := table{"Against the targets:", []string{"engine", "", "is", "at least", "met"}, nil}
	for _, d := range demands {
		for _, c := range d.comparisons() {
			targets.rows = append(targets.rows, append([]string{d.engine}, b.verdict(c)...))
		}
	}
	for i, size := range sectorSizes {
		targets.rows = append(targets.rows, append([]string{fastest.Name()}, b.verdict(comparison{
			fmt.Sprintf("%s, %d-byte sectors, OpenSSL = 1", oneByOne, size),
			task{fastest.Name(), oneByOne, size}, task{byOpenSSL, oneByOne, size}, oneByOneDemand[i]})...))
	}
	return []table{b.speedTable(), targets}, nil
}

// verdict is the row of a comparison: what, is, at least, met.
func (b *kernelBench) verdict(c comparison) []string {
	row := []string{c.what, "–", "–", "–"}
	if c.atLeast > 0 {
		row[2] = strconv.FormatFloat(c.atLeast, 'f', 2, 64)
	}
	of, with := b.speeds[c.of], b.speeds[c.with]
	switch is := of / with; {
	case of == 0 || with == 0:
		row[3] = whyNot(c.of)
	case c.atLeast == 0:
		row[1] = fmt.Sprintf("%.2f", is)
	case is >= c.atLeast:
		row[1], row[3] = fmt.Sprintf("%.2f", is), "yes"
	default:
		row[1], row[3] = fmt.Sprintf("%.2f", is), "**no**"
	}
	return row
}

// whyNot says why a task was not measured.
func whyNot(t task) string {
	for _, e := range blockcrypt.Engines() {
		if e.Name() == t.by && e.Missing() != "" {
			return e.Missing()
		}
		if e.Name() == t.by {
			return "there is one CPU only"
		}
	}
	return "not for " + runtime.GOARCH
}

// columns of the table of speeds.
var columns = []struct{ header, what string }{
	{"encrypt", encrypting}, {"decrypt", decrypting}, {"two cores", onTwoCores},
	{"from DRAM", fromDRAM}, {"sector by sector from L1", oneByOne},
}

// speedTable has a row for each who and sector size, and those of the loops.
func (b *kernelBench) speedTable() table {
	t := table{title: fmt.Sprintf("GB/s, compared with %s:", b.openSSL.version), header: []string{"", "sectors"}}
	for _, c := range columns {
		t.header = append(t.header, c.header)
	}
	for _, e := range blockcrypt.Engines() {
		if e.Missing() != "" {
			continue
		}
		for _, size := range sectorSizes {
			t.rows = append(t.rows, b.speedRow(e.Name(), size))
		}
		if _, ok := b.speeds[task{e.Name(), aesAlone, withoutSector}]; ok {
			t.rows = append(t.rows, b.loopRow(e.Name()))
		}
	}
	for _, size := range sectorSizes {
		t.rows = append(t.rows, b.speedRow(byOpenSSL, size))
	}
	return t
}

func (b *kernelBench) speedRow(by string, sectorSize int) []string {
	row := []string{by, strconv.Itoa(sectorSize)}
	for _, c := range columns {
		row = append(row, b.gigabytes(task{by, c.what, sectorSize}))
	}
	return row
}

// loopRow has the speeds of the two loops, where that which they are compared
// with has its own.
func (b *kernelBench) loopRow(engine string) []string {
	row := []string{engine + ": bare loops (AES; XOR)", "–"}
	for _, c := range columns {
		switch c.what {
		case encrypting:
			row = append(row, b.gigabytes(task{engine, aesAlone, withoutSector}))
		case fromDRAM:
			row = append(row, b.gigabytes(task{engine, xorFromDRAM, withoutSector}))
		default:
			row = append(row, "–")
		}
	}
	return row
}

func (b *kernelBench) gigabytes(t task) string {
	if speed, ok := b.speeds[t]; ok {
		return fmt.Sprintf("%.2f", speed/1e9)
	}
	return "–"
}
