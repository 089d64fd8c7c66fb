package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/kms"
)

// credentialName is the systemd credential that a root key can be sealed under.
const credentialName = "vmcrypt-kms" //nolint:gosec // a name

// bareRootKey is the one line that says so.
const bareRootKey = "the root key lies bare in %s/root.key: who has that folder has every key; \"vmcrypt kms rotate-root --root-key passphrase\" seals it"

// The flags that name files with the root key's passphrase. Where a command has
// a passphrase of its own as well, --passphrase-file is for that.
const (
	rootPassphraseFile    = "root-passphrase-file"
	newRootPassphraseFile = "new-root-passphrase-file" //nolint:gosec // a flag
)

func rootKeyFlag(value string) cli.Flag {
	return &cli.StringFlag{Name: "root-key", Value: value, Usage: "keep the root key as `FORM` says: file (bare), passphrase or systemd (sealed under a passphrase, or one that is a systemd credential)"}
}

func rootPassphraseFlag() cli.Flag {
	return &cli.StringFlag{Name: rootPassphraseFile, TakesFile: true, Usage: "take the root key's passphrase from the first line of `FILE`, \"-\" for standard input (default: the systemd credential, or ask for it)"}
}

// rootKeyForm reads --root-key.
func rootKeyForm(c *cli.Context) (kms.RootKey, error) {
	switch form := kms.RootKey(c.String("root-key")); form {
	case "", kms.RootKeyFile, kms.RootKeyPassphrase, kms.RootKeySystemd:
		return form, nil
	default:
		return "", usageError{fmt.Errorf("--root-key %q is none of file, passphrase, systemd", form)}
	}
}

// keeping is locate for the commands that choose how the root key is kept.
func keeping(c *cli.Context) (kms.Home, string, error) {
	form, err := rootKeyForm(c)
	if err != nil {
		return kms.Home{}, "", err
	}
	home, paths, err := locate(c)
	home.RootKey = form
	return home, paths.File, err
}

// warnOfBareRootKey says so once where it is.
func warnOfBareRootKey(c *cli.Context, home kms.Home) error {
	if form, err := home.RootKeyForm(); err != nil || form != kms.RootKeyFile {
		return err
	}
	warn(c, fmt.Sprintf(bareRootKey, home.Dir))
	return nil
}

// rootPassphrase gives the passphrases of root keys. What was typed is asked for
// once, however often the command opens the store.
type rootPassphrase struct {
	c     *cli.Context
	mu    sync.Mutex
	typed *secret.Buffer
}

func (p *rootPassphrase) get(form kms.RootKey, fresh bool) (*secret.Buffer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	file := p.c.String(rootPassphraseFile)
	if fresh && p.c.IsSet(newRootPassphraseFile) {
		file = p.c.String(newRootPassphraseFile)
	}
	switch {
	case file != "":
		return passphraseFrom(file)
	case form == kms.RootKeySystemd:
		return credential()
	case !term.IsTerminal(int(os.Stdin.Fd())):
		return nil, errors.New("there is no terminal to ask for the passphrase: start \"vmcrypt kms serve\", which then answers all other commands, or see --" + rootPassphraseFile)
	case fresh:
		return promptTwice(p.c.Context, "new passphrase of the root key: ")
	}
	return p.prompt()
}

func (p *rootPassphrase) prompt() (*secret.Buffer, error) {
	if p.typed == nil {
		var err error
		if p.typed, err = prompt(p.c.Context, "passphrase of the root key: "); err != nil {
			return nil, err
		}
	}
	return secret.Take(bytes.Clone(p.typed.Bytes()))
}

func promptTwice(ctx context.Context, text string) (*secret.Buffer, error) {
	first, err := prompt(ctx, text)
	if err != nil {
		return nil, err
	}
	return confirmed(ctx, first)
}

func passphraseFrom(file string) (*secret.Buffer, error) {
	if file == "-" {
		return readPassphrase(os.Stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readPassphrase(f)
}

// credential reads what systemd hands to the service. It has to be one line of
// text, so that it is the same when it comes from a file.
func credential() (*secret.Buffer, error) {
	dir := os.Getenv("CREDENTIALS_DIRECTORY") // systemd.exec(5)
	path := filepath.Join(dir, credentialName)
	text, err := os.ReadFile(path)
	if dir == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no systemd credential %q here: run this in a unit with LoadCredentialEncrypted=%s:FILE, or give it with --%s; while such a unit runs \"vmcrypt kms serve\", other commands don't need it",
			credentialName, credentialName, rootPassphraseFile)
	}
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(text)
	line := bytes.TrimSuffix(text, []byte("\n"))
	if bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, fmt.Errorf("the systemd credential %q is not one line of text: make it as docs/operations.md says", credentialName)
	}
	return passphraseOf(line)
}
