package kms

import (
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// TestPyKMIPClient runs the reference client of others against our server.
func TestPyKMIPClient(t *testing.T) {
	python := testtool.Need(t, "/usr/bin/python3")
	testtool.Need(t, "pykmip-server") // of the same package as the client
	h := newHome(t)
	address, _ := serve(t, h)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	pem := func(name string) string { return filepath.Join(h.ConfigDir(), name) }
	for _, v := range kmipwire.Versions() {
		t.Run(v.String(), func(t *testing.T) {
			cmd := exec.Command(python, "-W", "ignore", "testdata/pykmip_client.py", port, pem("client.pem"), pem("client.key"), pem("ca.pem"), v.String())
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.HasSuffix(string(out), "ok\n") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
