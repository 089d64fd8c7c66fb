// Command performance measures vmcrypt against the programs that do the same, on
// the machine that it runs on, and writes what it found into docs/performance.md.
// "make bench" runs it, from the module's folder:
//
//	go run ./internal/performance [-rounds N] [SECTION...]
//
// Everything that is compared takes turns, round after round: what slows the
// machine down for a while then slows all alike.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"slices"
)

// section is a part of the document that is measured by itself.
type section struct {
	name  string
	tools []string // programs that it compares with
	// run measures for as many rounds.
	run func(ctx context.Context, rounds int) ([]table, error)
}

// sections are in the order in which they are measured.
var sections = []section{
	{"kernels", []string{"gcc"}, measureKernels},
	{"files", []string{"qemu-img", "cp", "sync"}, measureFiles},
	{"inplace", []string{"cryptsetup", "cp", "sync", "truncate"}, measureInPlace},
	{"nbd", []string{"fio", "nbdkit", "qemu-nbd", "qemu-img", "taskset", "truncate"}, measureNBD},
	{"unlock", nil, measureUnlock},
	{"failover", []string{"cp"}, measureFailover},
}

// document is what the results are written to.
const document = "docs/performance.md"

func main() {
	log.SetFlags(log.Ltime)
	if len(os.Args) == 5 && os.Args[1] == childArgument {
		if err := child(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			log.Fatal(err)
		}
		return
	}
	rounds := flag.Int("rounds", 5, "how often each is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := measureAll(ctx, max(*rounds, 1), flag.Args()); err != nil {
		log.Fatal(err)
	}
}

// measureAll measures the named sections, or all, and documents each.
func measureAll(ctx context.Context, rounds int, names []string) error {
	for _, name := range names {
		if !slices.ContainsFunc(sections, func(s section) bool { return s.name == name }) {
			return fmt.Errorf("there is no section %q", name)
		}
	}
	for _, s := range sections {
		if len(names) > 0 && !slices.Contains(names, s.name) {
			continue
		}
		if err := s.measure(ctx, rounds); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (s section) measure(ctx context.Context, rounds int) error {
	for _, tool := range s.tools {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	tables, err := s.run(ctx, rounds)
	if err != nil {
		return err
	}
	machine, err := describeMachine()
	if err != nil {
		return err
	}
	text := machine + "\n"
	for _, t := range tables {
		text += "\n" + t.String()
	}
	fmt.Println(text)
	return rewrite(document, s.name, text)
}
