// Command generate makes the sample disks of package testimages, and prints
// their checksums in the format of sha256sum.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/vmcrypt/vmcrypt/testimages"
)

func main() {
	out := flag.String("out", "", "the folder to make the images in")
	seed := flag.Int64("seed", 1, "the number that everything random comes from")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := generate(*out, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func generate(dir string, seed int64) error {
	if err := testimages.Generate(dir, seed); err != nil {
		return err
	}
	sums, err := testimages.Sums(dir)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(sums)
	return err
}
