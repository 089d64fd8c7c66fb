package kms

import (
	"bytes"
	"crypto/sha256"
	stdsubtle "crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// RootKey is a way to keep the root key, under which all others are sealed.
type RootKey string

// The ways to keep the root key.
const (
	RootKeyFile       RootKey = "file"       // bare in root.key: who has the file has all keys
	RootKeyPassphrase RootKey = "passphrase" // sealed in root.key under a passphrase
	RootKeySystemd    RootKey = "systemd"    // likewise, under one that systemd hands to the service as a credential
)

// The formats of root.key are described in docs/format.md.
const (
	rootKeySize  = 32 // bytes
	rootKeyMagic = "vmcrypt-kms-root-key-1\n"

	sealedMagic   = "VMCRKMSR"
	sealedVersion = 1
	sealedHeader  = 8 + 4 + 4 + kdfSize                                // bytes that are in the clear
	sealedSize    = sealedHeader + 12 + rootKeySize + 16 + sha256.Size // bytes in all
)

// rootKeyCost is what guessing the passphrase of a root key costs.
var rootKeyCost = defaultCost

var rootUse = use{check: "vmcrypt kms root 1 check", key: "vmcrypt kms root 1 seal"}

// sealedForms are the ways to seal a root key, by their number in root.key.
var sealedForms = map[uint32]RootKey{1: RootKeyPassphrase, 2: RootKeySystemd}

// formatRootKey gives the text of a bare root.key: the magic line, then the key
// as 64 lower-case hexadecimal digits and a line feed.
func formatRootKey(root *secret.Buffer) []byte {
	text := make([]byte, bareSize)
	n := copy(text, rootKeyMagic)
	n += hex.Encode(text[n:], root.Bytes())
	text[n] = '\n'
	return text
}

const bareSize = len(rootKeyMagic) + 2*rootKeySize + 1 // bytes

// parseRootKey reads what formatRootKey wrote and accepts nothing else.
func parseRootKey(text []byte) (*secret.Buffer, error) {
	digits, ok := bytes.CutPrefix(text, []byte(rootKeyMagic))
	if !ok || len(text) != bareSize || text[bareSize-1] != '\n' {
		return nil, errNoRootKey
	}
	root, err := secret.New(rootKeySize)
	if err != nil {
		return nil, err
	}
	_, err = hex.Decode(root.Bytes(), digits[:2*rootKeySize])
	again := formatRootKey(root)
	defer secret.Wipe(again)
	if err != nil || stdsubtle.ConstantTimeCompare(again, text) == 0 {
		root.Destroy()
		return nil, errNoRootKey // err quotes the key
	}
	return root, nil
}

var errNoRootKey = fmt.Errorf("%w: not a root key file", ErrDamaged)

// keeper keeps root keys in one of the ways.
type keeper struct {
	form RootKey
	kdf  kdf
	key  *secret.Buffer // AES-256-GCM; nil for RootKeyFile
}

// newKeeper does the expensive work that a passphrase takes.
func newKeeper(form RootKey, passphrase *secret.Buffer, cost kdfCost) (*keeper, error) {
	k := &keeper{form: form}
	if form == RootKeyFile {
		return k, nil
	}
	derived, key, err := newKDF(cost, passphrase, rootUse)
	if err != nil {
		return nil, err
	}
	k.kdf = derived
	k.key, err = secret.Take(key)
	return k, err
}

func (k *keeper) destroy() {
	if k != nil {
		k.key.Destroy()
	}
}

// header gives what is in the clear in a sealed root.key.
func (k *keeper) header() []byte {
	b := binary.BigEndian.AppendUint32([]byte(sealedMagic), sealedVersion)
	for number, form := range sealedForms {
		if form == k.form {
			b = binary.BigEndian.AppendUint32(b, number)
		}
	}
	return k.kdf.append(b)
}

// format gives the content of root.key. It may hold the bare key, and must be
// wiped.
func (k *keeper) format(root *secret.Buffer) ([]byte, error) {
	if k.form == RootKeyFile {
		return formatRootKey(root), nil
	}
	aead, err := subtle.NewAESGCM(k.key.Bytes())
	if err != nil {
		return nil, err
	}
	header := k.header()
	sealed, err := aead.Encrypt(root.Bytes(), header)
	if err != nil {
		return nil, err
	}
	text := append(header, sealed...)
	sum := sha256.Sum256(text)
	return append(text, sum[:]...), nil
}

// rootKeyForm tells how a root.key keeps its key.
func rootKeyForm(text []byte) (RootKey, error) {
	if !bytes.HasPrefix(text, []byte(sealedMagic)) {
		return RootKeyFile, nil // or nothing, as parseRootKey will find
	}
	k, err := parseSealed(text)
	if err != nil {
		return "", err
	}
	return k.form, nil
}

// parseSealed reads a sealed root.key up to the key itself.
func parseSealed(text []byte) (*keeper, error) {
	if len(text) != sealedSize {
		return nil, fmt.Errorf("%w: a sealed root key has %d bytes, not %d", ErrDamaged, sealedSize, len(text))
	}
	if v := binary.BigEndian.Uint32(text[8:]); v != sealedVersion {
		return nil, fmt.Errorf("%w %d of the root key: this version of vmcrypt knows %d", ErrVersion, v, sealedVersion)
	}
	body := text[:sealedSize-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], text[len(body):]) {
		return nil, fmt.Errorf("%w: the checksum does not match", ErrDamaged)
	}
	form, ok := sealedForms[binary.BigEndian.Uint32(text[12:])]
	if !ok {
		return nil, fmt.Errorf("%w: it is sealed in an unknown way", ErrDamaged)
	}
	k := &keeper{form: form, kdf: parseKDF(text[16:sealedHeader])}
	return k, k.kdf.Cost.check()
}

// kept is a root key and the way it is kept.
type kept struct {
	root   *secret.Buffer
	keeper *keeper
	name   string // of the file
}

func (k *kept) destroy() {
	k.root.Destroy()
	k.keeper.destroy()
}

// openRootKey reads a root.key of either kind.
func openRootKey(text []byte, p passphrases) (*kept, error) {
	if !bytes.HasPrefix(text, []byte(sealedMagic)) {
		root, err := parseRootKey(text)
		return &kept{root: root, keeper: &keeper{form: RootKeyFile}}, err
	}
	k, err := parseSealed(text)
	if err != nil {
		return nil, err
	}
	if err := p[k.form].err; err != nil {
		return nil, fmt.Errorf("it is sealed (%s): %w", k.form, err)
	}
	key, err := k.kdf.open(p[k.form].words, rootUse)
	if err != nil {
		return nil, err
	}
	if k.key, err = secret.Take(key); err != nil {
		return nil, err
	}
	root, err := k.unseal(text[sealedHeader : sealedSize-sha256.Size])
	if err != nil {
		k.destroy()
		return nil, err
	}
	return &kept{root: root, keeper: k}, nil
}

func (k *keeper) unseal(sealed []byte) (*secret.Buffer, error) {
	aead, err := subtle.NewAESGCM(k.key.Bytes())
	if err != nil {
		return nil, err
	}
	root, err := aead.Decrypt(sealed, k.header())
	if err != nil || len(root) != rootKeySize {
		secret.Wipe(root)
		return nil, fmt.Errorf("%w: the passphrase is right, but the sealed root key was changed", ErrDamaged)
	}
	return secret.Take(root)
}

// passphrases holds what root.key may be sealed under, by the way it is kept.
type passphrases map[RootKey]answer

// answer is a passphrase, or why there is none.
type answer struct {
	words *secret.Buffer
	err   error
}

func (p passphrases) destroy() {
	for _, a := range p {
		a.words.Destroy()
	}
}

// RootKeyForm tells how the home keeps its root key.
func (h Home) RootKeyForm() (RootKey, error) {
	text, err := h.readRootKey(rootKeyFile)
	if err != nil {
		return "", err
	}
	defer secret.Wipe(text)
	form, err := rootKeyForm(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", h.path(rootKeyFile), err)
	}
	return form, nil
}

// passphrases asks for what it takes to open root.key, and the root key that was
// to follow it when a rotation was interrupted. It looks at no more than their
// forms: what is wrong with them, or with the answers, matters where they are
// opened.
func (h Home) passphrases() passphrases {
	p := passphrases{}
	for _, name := range rootKeyFiles {
		text, err := h.readRootKey(name)
		if err != nil {
			continue
		}
		form, err := rootKeyForm(text)
		secret.Wipe(text)
		if _, asked := p[form]; asked || err != nil || form == RootKeyFile {
			continue
		}
		words, err := h.ask(form, false)
		p[form] = answer{words, err}
	}
	return p
}

// ask gets the passphrase that the root key is, or is to be, sealed under.
func (h Home) ask(form RootKey, fresh bool) (*secret.Buffer, error) {
	if h.Passphrase == nil {
		return nil, errors.New("there is nobody to ask for the passphrase")
	}
	return h.Passphrase(form, fresh)
}

// newKeeper makes a keeper of the way that the home asks for.
func (h Home) newKeeper() (*keeper, error) {
	switch h.RootKey {
	case "", RootKeyFile:
		return newKeeper(RootKeyFile, nil, kdfCost{})
	case RootKeyPassphrase, RootKeySystemd:
	default:
		return nil, fmt.Errorf("there is no way %q to keep a root key", h.RootKey)
	}
	passphrase, err := h.ask(h.RootKey, true)
	if err != nil {
		return nil, err
	}
	defer passphrase.Destroy()
	return newKeeper(h.RootKey, passphrase, rootKeyCost)
}

// rootKeys opens root.key and, if a rotation was interrupted, the root key that
// was to follow it. It may give one along with the error of the other.
func (h Home) rootKeys(p passphrases) ([]*kept, error) {
	var all []*kept
	var failed error
	for _, name := range rootKeyFiles {
		k, err := h.openRootKey(name, p)
		switch {
		case err == nil:
			all = append(all, k)
		case name != nextRootKeyFile || !errors.Is(err, fs.ErrNotExist):
			failed = errors.Join(failed, err)
		}
	}
	return all, failed
}

func (h Home) openRootKey(name string, p passphrases) (*kept, error) {
	text, err := h.readRootKey(name)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(text)
	k, err := openRootKey(text, p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.path(name), err)
	}
	k.name = name
	return k, nil
}

// readRootKey reads a root key file, which nobody but its owner may be able to
// read.
func (h Home) readRootKey(name string) ([]byte, error) {
	path := h.path(name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is gone: without it the keys in %s cannot be read: %w", path, h.path(storeFile), err)
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: others may access it (mode %04o): run chmod 600", path, info.Mode().Perm())
	}
	return readSmall(path)
}
