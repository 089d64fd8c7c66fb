package testimages

import (
	"fmt"
	"path"
	"strings"
	"time"
)

// birthday is the time of everything on a sample disk.
var birthday = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// sizes are those at which code that works in sectors, blocks or clusters goes
// wrong.
var sizes = []int64{
	0, 1, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097,
	65535, 65536, 65537, 1<<20 - 1, 1 << 20, 1<<20 + 1,
}

// node is a file or a folder that a file system is made of.
type node struct {
	name     string // empty for the root
	parent   *node  // of the root, itself
	folder   bool
	children []*node
	data     []byte
}

// tree is what a sample file system holds.
type tree struct {
	seed   int64
	volume string // tells the content of one volume from another's
	root   *node
	byPath map[string]*node
	paths  []string // but the root's, each after that of its folder
}

func newTree(seed int64, volume string) *tree {
	root := &node{folder: true}
	root.parent = root
	return &tree{seed: seed, volume: volume, root: root, byPath: map[string]*node{"/": root}}
}

func (t *tree) add(p string, n *node) {
	n.name, n.parent = path.Base(p), t.byPath[path.Dir(p)]
	n.parent.children = append(n.parent.children, n)
	t.byPath[p] = n
	t.paths = append(t.paths, p)
}

func (t *tree) folder(p string) { t.add(p, &node{folder: true}) }

func (t *tree) file(p string, size int64) {
	t.add(p, &node{data: content(t.seed, t.volume+p, size)})
}

// nodes is the root and all that is in it, each after its folder.
func (t *tree) nodes() []*node {
	nodes := []*node{t.root}
	for _, p := range t.paths {
		nodes = append(nodes, t.byPath[p])
	}
	return nodes
}

// list notes the tree's files and folders on a volume.
func (t *tree) list(v *Volume) {
	for _, p := range t.paths {
		if n := t.byPath[p]; n.folder {
			v.Folders = append(v.Folders, p)
		} else {
			v.Files = append(v.Files, describe(p, n.data))
		}
	}
}

// awkward is a tree of what often goes wrong: sizes around those of blocks,
// folders in folders, a folder of several blocks, an empty one, long and
// foreign names. Longest is the greatest length of a name in bytes.
func awkward(seed int64, volume string, longest int) *tree {
	t := newTree(seed, volume)
	t.folder("/sizes")
	for _, size := range sizes {
		t.file(fmt.Sprintf("/sizes/%d", size), size)
	}
	t.folder("/many")
	for i := range 100 {
		t.file(fmt.Sprintf("/many/file number %03d", i), int64(i))
	}
	deep := ""
	for range 6 {
		deep += "/deeper"
		t.folder(deep)
	}
	t.file(deep+"/deepest.bin", 12345)
	t.folder("/names")
	t.file("/names/"+strings.Repeat("l", longest-4)+".bin", 777)
	t.file("/names/Grüße aus Köln.txt", 888)
	t.file("/names/日本語.txt", 999)
	t.file("/names/two  spaces", 111)
	t.file("/names/.hidden", 222)
	t.file("/README.TXT", 333)
	t.folder("/empty")
	return t
}
