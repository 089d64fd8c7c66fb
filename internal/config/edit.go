package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/durable"
)

// Setting is a key of an alias, or of one of its servers, with a text as its value.
type Setting struct {
	Server string // the address of the server that it belongs to; "" for the alias itself
	Key    string
	Value  string // "" takes the key away
}

// errByHand: the file is written in a way that Set does not understand.
var errByHand = errors.New("it is written in a way that only people can change")

// Set changes an alias in the configuration at path. All else stays as it is, byte for
// byte. Either all settings are made or none.
func Set(path, alias string, settings ...Setting) error {
	unlock, err := lockFolder(path)
	if err != nil {
		return err
	}
	defer unlock()
	data, err := read(path)
	if err != nil {
		return err
	}
	before := data
	for _, s := range settings {
		if data, err = s.apply(data, alias); err != nil {
			return fmt.Errorf("%s: %w; it should have %s", path, err, inWords(settings, alias))
		}
	}
	if bytes.Equal(before, data) {
		return nil
	}
	return durable.WriteFile(path, data, 0o600)
}

// lockFolder keeps others from setting something meanwhile, which would be lost. The file
// itself can't be locked, since another one takes its place.
func lockFolder(path string) (unlock func(), err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX); err != nil {
		folder.Close()
		return nil, fmt.Errorf("lock %s: %w", folder.Name(), err)
	}
	return func() { folder.Close() }, nil
}

// inWords tells people what to write.
func inWords(settings []Setting, alias string) string {
	all := make([]string, len(settings))
	for i, s := range settings {
		all[i] = "no " + s.Key
		if s.Value != "" {
			all[i] = s.Key + ": " + quoted(s.Value)
		}
		if s.Server != "" {
			all[i] += " at server " + s.Server
		}
	}
	return strings.Join(all, ", ") + " in alias " + alias
}

// apply makes the setting and checks that it, and nothing else, has changed.
func (s Setting) apply(data []byte, alias string) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, err
	}
	parent := s.parent(&document, alias)
	if parent == nil {
		return nil, errByHand
	}
	out, ok := s.edit(data, parent)
	if !ok || !s.made(data, out, alias) {
		return nil, errByHand
	}
	return out, nil
}

// parent is the mapping that the key belongs into, nil if there is none in plain sight.
func (s Setting) parent(document *yaml.Node, alias string) *yaml.Node {
	if len(document.Content) == 0 {
		return nil
	}
	node := child(child(document.Content[0], "aliases"), alias)
	if s.Server == "" || node == nil {
		return mapping(node)
	}
	servers := child(node, "servers")
	if servers == nil || servers.Kind != yaml.SequenceNode {
		return nil
	}
	i := slices.IndexFunc(servers.Content, func(n *yaml.Node) bool {
		address := child(n, "address")
		return address != nil && address.Value == s.Server
	})
	if i < 0 {
		return nil
	}
	return mapping(servers.Content[i])
}

func mapping(n *yaml.Node) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode || len(n.Content) == 0 {
		return nil
	}
	return n
}

// child is the value of a key in a mapping.
func child(n *yaml.Node, key string) *yaml.Node {
	if i := keyIndex(n, key); i >= 0 {
		return n.Content[i+1]
	}
	return nil
}

func keyIndex(n *yaml.Node, key string) int {
	if mapping(n) == nil {
		return -1
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return i
		}
	}
	return -1
}

// edit makes the setting in parent. The second result is false where that can't be done.
func (s Setting) edit(data []byte, parent *yaml.Node) ([]byte, bool) {
	i := keyIndex(parent, s.Key)
	switch {
	case i < 0 && s.Value == "":
		return data, true
	case i < 0:
		return s.insert(data, parent)
	}
	key, value := parent.Content[i], parent.Content[i+1]
	if line := lineOf(data, key); s.Value == "" && isAlone(data, line, parent, key, value) {
		return splice(data, line, nextLine(data, line), ""), true
	}
	start := offset(data, value)
	length := scalarLength(data[start:], value)
	if length < 0 {
		return nil, false
	}
	return splice(data, start, start+length, quoted(s.Value)), true
}

// isAlone tells whether a line has the key and its value, and nothing of others.
func isAlone(data []byte, line int, parent, key, value *yaml.Node) bool {
	before := strings.TrimSpace(string(data[line:offset(data, key)]))
	return before == "" && parent.Style&yaml.FlowStyle == 0 && len(parent.Content) > 2 && value.Line == key.Line
}

// insert adds the key: behind the brace where parent is written in braces, else below its
// last key that takes one line, and if there is none above the first.
func (s Setting) insert(data []byte, parent *yaml.Node) ([]byte, bool) {
	entry := s.Key + ": " + quoted(s.Value)
	if parent.Style&yaml.FlowStyle != 0 {
		at := offset(data, parent) + 1
		return splice(data, at, at, entry+", "), true
	}
	first := parent.Content[0]
	entry = strings.Repeat(" ", first.Column-1) + entry + lineEnd(data)
	at := lineOf(data, first)
	for i := 0; i+1 < len(parent.Content); i += 2 {
		if key, value := parent.Content[i], parent.Content[i+1]; value.Kind == yaml.ScalarNode && value.Line == key.Line {
			at = nextLine(data, lineOf(data, key))
		}
	}
	if at > 0 && data[at-1] != '\n' {
		entry = lineEnd(data) + entry
	}
	return splice(data, at, at, entry), true
}

// quoted is YAML, too.
func quoted(value string) string {
	text, _ := json.Marshal(value) // of a string it never fails
	return string(text)
}

// scalarLength is how many bytes a scalar on one line takes, -1 if that can't be told.
func scalarLength(data []byte, n *yaml.Node) int {
	if n.Kind != yaml.ScalarNode || n.Anchor != "" || n.Style&^(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 {
		return -1
	}
	if n.Style == 0 {
		if !bytes.HasPrefix(data, []byte(n.Value)) {
			return -1
		}
		return len(n.Value)
	}
	quote := data[0]
	for i := 1; i < len(data); i++ {
		switch {
		case data[i] == '\\' && quote == '"', data[i] == '\'' && quote == '\'' && bytes.HasPrefix(data[i+1:], []byte("'")):
			i++
		case data[i] == quote:
			return i + 1
		}
	}
	return -1
}

func splice(data []byte, from, to int, text string) []byte {
	return slices.Concat(data[:from], []byte(text), data[to:])
}

// lineOf is where the line of a node begins.
func lineOf(data []byte, n *yaml.Node) (at int) {
	for range n.Line - 1 {
		at = nextLine(data, at)
	}
	return at
}

func nextLine(data []byte, at int) int {
	if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(data)
}

func lineEnd(data []byte) string {
	if bytes.Contains(data, []byte("\r\n")) {
		return "\r\n"
	}
	return "\n"
}

// offset is where a node begins. Its column counts characters.
func offset(data []byte, n *yaml.Node) int {
	at := lineOf(data, n)
	for range n.Column - 1 {
		_, size := utf8.DecodeRune(data[at:])
		at += size
	}
	return at
}

// made tells whether after differs from before by the setting alone.
func (s Setting) made(before, after []byte, alias string) bool {
	var want, got map[string]any
	if yaml.Unmarshal(before, &want) != nil || yaml.Unmarshal(after, &got) != nil {
		return false
	}
	for _, tree := range []map[string]any{want, got} {
		place := s.in(tree, alias)
		if place == nil {
			return false
		}
		maps.DeleteFunc(place, func(key string, value any) bool { return key == s.Key && value == "" })
	}
	if value, there := s.in(got, alias)[s.Key]; there != (s.Value != "") || there && value != s.Value {
		return false
	}
	delete(s.in(want, alias), s.Key)
	delete(s.in(got, alias), s.Key)
	return reflect.DeepEqual(want, got)
}

// in finds the mapping that parent finds, in a decoded configuration.
func (s Setting) in(tree map[string]any, alias string) map[string]any {
	aliases, _ := tree["aliases"].(map[string]any)
	place, _ := aliases[alias].(map[string]any)
	if s.Server == "" {
		return place
	}
	servers, _ := place["servers"].([]any)
	for _, server := range servers {
		if m, ok := server.(map[string]any); ok && m["address"] == s.Server {
			return m
		}
	}
	return nil
}
