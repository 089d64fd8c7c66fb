package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// Everything that there is to measure gets a speed.
func TestKernels(t *testing.T) {
	testtool.Need(t, "gcc")
	testtool.NeedFile(t, "/usr/include/stdlib.h", "libc6-dev")
	testtool.NeedFile(t, "/usr/include/openssl/evp.h", "libssl-dev")
	b, err := newKernelBench(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.measure(t.Context(), 2*windowSize); err != nil {
		t.Error(err)
	}
	if err := b.close(); err != nil {
		t.Error(err)
	}
	if !strings.HasPrefix(b.openSSL.version, "OpenSSL ") {
		t.Errorf("version %q", b.openSSL.version)
	}
	tables, err := b.tables()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range tables[0].rows {
		if speed := row[2]; speed == "–" || speed == "0.00" {
			t.Errorf("no speed in %q", row)
		}
	}
	for _, row := range tables[1].rows {
		if row[2] == "–" && b.speeds[task{row[0], encrypting, 512}] > 0 && (b.two != nil || !strings.Contains(row[1], "two")) {
			t.Errorf("not compared: %q", row)
		}
	}
}

func TestOpenSSLHasToDoTheSame(t *testing.T) {
	testtool.Need(t, "gcc")
	testtool.NeedFile(t, "/usr/include/stdlib.h", "libc6-dev")
	testtool.NeedFile(t, "/usr/include/openssl/evp.h", "libssl-dev")
	honest := openSSLProgram
	defer func() { openSSLProgram = honest }()
	openSSLProgram = []byte(strings.Replace(string(honest), "at / 512", "at / 256", 1))
	if _, err := startOpenSSL(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "encrypted to") {
		t.Errorf("other tweaks: %v", err)
	}
	openSSLProgram = []byte("int main(void) { return 0; }")
	if _, err := startOpenSSL(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("a program that ends: %v", err)
	}
}

func TestVerdict(t *testing.T) {
	ours, theirs, lacking := task{"crypto-aes", encrypting, 512}, task{byOpenSSL, encrypting, 512}, task{"other", encrypting, 512}
	b := &kernelBench{speeds: map[task]float64{ours: 3e9, theirs: 2e9}}
	for _, test := range []struct {
		c    comparison
		want []string
	}{
		{comparison{"a", ours, theirs, 1.5}, []string{"a", "1.50", "1.50", "yes"}},
		{comparison{"b", ours, theirs, 1.51}, []string{"b", "1.50", "1.51", "**no**"}},
		{comparison{"c", theirs, ours, 0}, []string{"c", "0.67", "–", "–"}},
		{comparison{"d", lacking, theirs, 2}, []string{"d", "–", "2.00", whyNot(lacking)}},
	} {
		if got := b.verdict(test.c); !slices.Equal(got, test.want) {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestWhyNot(t *testing.T) {
	for _, e := range blockcrypt.Engines() {
		want := e.Missing()
		if want == "" {
			want = "there is one CPU only"
		}
		if got := whyNot(task{by: e.Name()}); got != want {
			t.Errorf("%s: %q, want %q", e.Name(), got, want)
		}
	}
}
