package config

import (
	"fmt"
	"os"
	"path/filepath"
)

// Paths says where vmcrypt keeps its things.
type Paths struct {
	File  string // the configuration file
	State string // the folder for what vmcrypt itself writes
	Run   string // the folder for sockets
}

// SystemFile is root's configuration file.
const SystemFile = "/etc/vmcrypt/config.yaml"

// Locate finds the configuration and state of this user: below VMCRYPT_HOME
// where that is set, in /etc/vmcrypt and /var/lib/vmcrypt for root, and as the
// XDG base directory specification says for others. A file named on the command
// line takes the place of the configuration only.
func Locate(file string) (Paths, error) {
	p, err := defaults()
	if err != nil {
		return Paths{}, err
	}
	if file != "" {
		p.File = file
	}
	if p.File, err = filepath.Abs(p.File); err != nil {
		return Paths{}, err
	}
	if p.Run, err = filepath.Abs(p.Run); err != nil {
		return Paths{}, err
	}
	p.State, err = filepath.Abs(p.State)
	return p, err
}

func defaults() (Paths, error) {
	if home := os.Getenv("VMCRYPT_HOME"); home != "" {
		return Paths{File: filepath.Join(home, "config.yaml"), State: home, Run: filepath.Join(home, "run")}, nil
	}
	if os.Geteuid() == 0 {
		return Paths{File: SystemFile, State: "/var/lib/vmcrypt", Run: "/run/vmcrypt"}, nil
	}
	conf, err := xdg("XDG_CONFIG_HOME", ".config")
	if err != nil {
		return Paths{}, err
	}
	state, err := xdg("XDG_DATA_HOME", ".local/share")
	if err != nil {
		return Paths{}, err
	}
	run := filepath.Join(state, "run")
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		run = filepath.Join(dir, "vmcrypt")
	}
	return Paths{File: filepath.Join(conf, "config.yaml"), State: state, Run: run}, nil
}

// xdg is vmcrypt's folder below the one that a variable names or, as the
// specification has it, below its default in the user's home.
func xdg(variable, fallback string) (string, error) {
	if dir := os.Getenv(variable); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vmcrypt"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find a place for vmcrypt's files: %w; set VMCRYPT_HOME", err)
	}
	return filepath.Join(home, fallback, "vmcrypt"), nil
}
