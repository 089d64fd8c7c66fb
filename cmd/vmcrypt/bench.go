package main

import (
	"cmp"
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/cpuid/v2"
	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/internal/measure"
)

func benchCommand() *cli.Command {
	return command(cli.Command{
		Name:  "bench",
		Usage: "show which AES-XTS engine this host uses and why, and how fast each is",
		Description: "Measures encryption and decryption in memory: no disk, no key and no configuration is needed.\n" +
			"It takes many short samples and gives their median, so other load disturbs little.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "time", Value: 6 * time.Second, Usage: "measure for `DURATION` in all"},
		},
		Action: bench,
	})
}

// benchReport is the JSON of "bench".
type benchReport struct {
	CPU     string       `json:"cpu"`
	Kernel  string       `json:"kernel"` // in use
	Reason  string       `json:"reason"` // and what is wrong with faster ones
	Results []benchSpeed `json:"results"`
}

type benchSpeed struct {
	Kernel         string `json:"kernel"`
	Op             string `json:"op"`
	SectorSize     int    `json:"sectorSize"`
	Cores          int    `json:"cores"`
	BytesPerSecond int64  `json:"bytesPerSecond"`
}

func bench(c *cli.Context) error {
	if _, err := nArgs(c, 0, 0); err != nil {
		return err
	}
	duration := c.Duration("time")
	if duration <= 0 {
		return usageError{fmt.Errorf("--time %v: it takes some time to measure", duration)}
	}
	cfg, err := configIfAny(c)
	if err != nil {
		return err
	}
	engine := chooseEngine(cfg)
	report := benchReport{CPU: cpuName(), Kernel: engine.Name(), Reason: reason(cfg, engine)}
	w := c.App.Writer
	if !c.Bool("json") {
		fmt.Fprintf(w, "This host encrypts with %s, %s.\n", report.Kernel, report.Reason)
	}
	if report.Results, err = engineSpeeds(c.Context, duration); err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(w, report)
	}
	printSpeeds(w, report)
	return nil
}

// configIfAny is the configuration, or the default where there is none and none
// was named.
func configIfAny(c *cli.Context) (*config.Config, error) {
	paths, err := config.Locate(c.String("config"))
	if err == nil {
		_, err = os.Stat(paths.File)
	}
	if c.String("config") == "" && (paths.File == "" || errors.Is(err, fs.ErrNotExist)) {
		return &config.Config{Engine: config.EngineAuto}, nil
	}
	if paths.File == "" {
		return nil, err
	}
	return config.Load(paths.File)
}

func cpuName() string {
	if name := strings.TrimSpace(cpuid.CPU.BrandName); name != "" {
		return name
	}
	return runtime.GOARCH
}

// reason says why an engine was chosen, and why not each of the faster ones.
func reason(cfg *config.Config, chosen blockcrypt.Engine) string {
	switch {
	case cfg.Engine != config.EngineAuto:
		return fmt.Sprintf("as the configuration says (engine: %s)", cfg.Engine)
	case fips140.Enabled():
		return "the only one in Go's FIPS 140 mode"
	}
	const fastest = "the fastest that this CPU has and that passed its self-test"
	var others []string
	for _, e := range blockcrypt.Engines() {
		if e.Name() == chosen.Name() {
			break
		}
		why := cmp.Or(e.Missing(), "it failed its self-test")
		others = append(others, e.Name()+": "+why)
	}
	if len(others) == 0 {
		return fastest
	}
	return fmt.Sprintf("%s (%s)", fastest, strings.Join(others, "; "))
}

// benchSize is how much memory each core works on: it fits into its cache, and
// takes any engine less than half a millisecond.
const benchSize = 256 << 10

// engineSpeeds measures every engine that this CPU has on one core and on all.
func engineSpeeds(ctx context.Context, d time.Duration) ([]benchSpeed, error) {
	cores := []int{1}
	if all := runtime.GOMAXPROCS(0); all > 1 {
		cores = append(cores, all)
	}
	var speeds []benchSpeed
	for _, n := range cores {
		some, err := speedsOn(ctx, d/time.Duration(len(cores)), n)
		if err != nil {
			return nil, err
		}
		speeds = append(speeds, some...)
	}
	return speeds, nil
}

// speedsOn measures on as many cores at once.
func speedsOn(ctx context.Context, d time.Duration, cores int) ([]benchSpeed, error) {
	b := newBenchmark(cores)
	defer b.team.Close()
	for _, e := range blockcrypt.Engines() {
		if e.Missing() != "" {
			continue
		}
		for _, sectorSize := range []int{512, 4096} {
			if err := b.add(e, sectorSize); err != nil {
				return nil, err
			}
		}
	}
	medians, err := measure.Medians(ctx, d, b.samplers...)
	for i, median := range medians {
		b.speeds[i].BytesPerSecond = int64(float64(cores*benchSize) / median.Seconds())
	}
	return b.speeds, err
}

// benchmark is what to measure on some number of cores: a sampler for each speed.
type benchmark struct {
	team     *measure.Team
	buffers  [][]byte // one for each core
	samplers []measure.Sampler
	speeds   []benchSpeed
}

func newBenchmark(cores int) *benchmark {
	b := &benchmark{team: measure.NewTeam(cores), buffers: make([][]byte, cores)}
	for i := range b.buffers {
		b.buffers[i] = make([]byte, benchSize)
	}
	return b
}

// add adds both operations of an engine.
func (b *benchmark) add(e blockcrypt.Engine, sectorSize int) error {
	key := make([]byte, blockcrypt.KeySize)
	key[0] = 1 // the halves must differ
	cipher, err := e.NewCipher(key, sectorSize)
	if err != nil {
		return err
	}
	b.addOp(e, sectorSize, "encrypt", cipher.Encrypt)
	b.addOp(e, sectorSize, "decrypt", cipher.Decrypt)
	return nil
}

func (b *benchmark) addOp(e blockcrypt.Engine, sectorSize int, op string, crypt func(dst, src []byte, off int64) error) {
	do := func(core int) error { return crypt(b.buffers[core], b.buffers[core], 0) }
	b.samplers = append(b.samplers, b.team.Sampler(measure.Work{Prepare: do, Do: do}))
	b.speeds = append(b.speeds, benchSpeed{Kernel: e.Name(), Op: op, SectorSize: sectorSize, Cores: len(b.buffers)})
}

// printSpeeds writes a table with a line for each engine and number of cores.
func printSpeeds(w io.Writer, report benchReport) {
	fmt.Fprintf(w, "\n%s, GB/s in memory:\n\n", plainText(report.CPU))
	fmt.Fprintf(w, "%-14s %5s  %19s  %19s\n", "", "", "512-byte sectors   ", "4096-byte sectors  ")
	fmt.Fprintf(w, "%-14s %5s  %9s %9s  %9s %9s\n", "engine", "cores", "encrypt", "decrypt", "encrypt", "decrypt")
	// The results of a line follow each other, in the order of its columns.
	for r := report.Results; len(r) >= 4; r = r[4:] {
		fmt.Fprintf(w, "%-14s %5d  %9.2f %9.2f  %9.2f %9.2f\n", r[0].Kernel, r[0].Cores,
			gigabytes(r[0]), gigabytes(r[1]), gigabytes(r[2]), gigabytes(r[3]))
	}
}

func gigabytes(s benchSpeed) float64 { return float64(s.BytesPerSecond) / 1e9 }
