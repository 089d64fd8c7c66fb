package vmx

import (
	"bytes"
	"reflect"
	"testing"
)

// FuzzParse checks that any file is kept byte for byte, that nothing panics on
// it, and that a value set in it comes back without harm to other lines.
func FuzzParse(f *testing.F) {
	for _, data := range samples(f) {
		f.Add(data, "displayName", "Büro |22")
		f.Add(data, "scsi0:0.fileName", "x\".vmdk\n")
	}
	f.Add([]byte("\xef\xbb\xbfa = 1 # b\r"), "A", "\x00")
	f.Fuzz(func(t *testing.T, data []byte, key, value string) {
		file, err := Parse(data)
		if err != nil {
			return
		}
		wantBytes(t, file, data)
		if _, err := file.Disks(); err != nil && !isRefusal(err) {
			t.Error(err)
		}
		before, had := file.Get(key)
		if err := file.Set(key, value); err != nil {
			wantBytes(t, file, data)
			if after, has := file.Get(key); after != before || has != had {
				t.Errorf("refused, and yet %q became %q", before, after)
			}
			return
		}
		checkSet(t, data, file, key, value)
	})
}

// checkSet checks a file after one Set on data.
func checkSet(t *testing.T, data []byte, file *File, key, value string) {
	old := parse(t, string(data))
	again := parse(t, string(file.Bytes()))
	for _, f := range []*File{file, again} {
		if got, ok := f.Get(key); !ok || got != value {
			t.Errorf("%q is %q, %v after setting %q", key, got, ok, value)
		}
	}
	if n := len(again.lines) - len(old.lines); n != 0 && n != 1 {
		t.Errorf("%d lines were added", n)
	}
	for i, l := range old.lines {
		text := bytes.TrimRight(l.appendTo(nil), "\r\n")
		if l.key != lower(key) && !bytes.HasPrefix(again.lines[i].appendTo(nil), text) {
			t.Errorf("line %d became %q", i+1, again.lines[i].appendTo(nil))
		}
	}
}

// FuzzRecord checks on the disks of any file that a record in any state can be
// put there, read back and removed, without a trace if it was the first.
func FuzzRecord(f *testing.F) {
	for _, data := range samples(f) {
		f.Add(data, "KMSCluster", "1", StateEncrypted, "")
	}
	f.Add(encrypted(f), "a|b", "\"", StateRekeying, PhaseReverted)
	f.Add([]byte("\xef\xbb\xbfscsi0:0.fileName = x\r"), "Zürich", "密", StateEncrypting, PhasePreparing)
	for _, state := range states {
		f.Add(sample(f, "records/1-"+state+".vmx"), "a", "1", state, PhaseConverted)
	}
	f.Fuzz(func(t *testing.T, data []byte, alias, kekID, state, phase string) {
		file, err := Parse(data)
		if err != nil {
			return
		}
		disks, err := file.Disks()
		if err != nil && !isRefusal(err) {
			t.Error(err)
		}
		r := fuzzedRecord(alias, kekID, state, phase)
		for _, d := range disks[:min(len(disks), 8)] {
			checkRecord(t, parse(t, string(data)), d.Node, r)
		}
	})
}

// fuzzedRecord is a record with these texts where its state has a place for them.
func fuzzedRecord(alias, kekID, state, phase string) *Record {
	r := recordIn(state)
	r.Recipients[0].Alias, r.Recipients[0].KEKID = alias, kekID
	if r.Unfinished() {
		r.Conversion.Phase = phase
	}
	if r.Previous != nil {
		r.Previous[1].Alias, r.Previous[1].KEKID = alias, kekID
	}
	return r
}

// checkRecord puts a record on a disk that has one or not, and takes it off.
func checkRecord(t *testing.T, f *File, node string, r *Record) {
	before := f.Bytes()
	old, err := f.Record(node)
	if err != nil {
		if old != nil || !isRefusal(err) {
			t.Errorf("record is %v, error %v", old, err)
		}
		return
	}
	if old != nil {
		checkState(t, old)
	}
	if err := f.SetRecord(node, r); err != nil {
		wantBytes(t, f, before)
		return
	}
	f = parse(t, string(f.Bytes()))
	if got, err := f.Record(node); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("record is %v, %v after setting %v", got, err, r)
	}
	if err := f.RemoveRecord(node); err != nil {
		t.Error(err)
	}
	if old == nil {
		wantBytes(t, f, before)
	}
}

// checkState wants of a record what its readers rely on.
func checkState(t *testing.T, r *Record) {
	if r.Unfinished() != (r.State != StateEncrypted) {
		t.Errorf("state %s with conversion %v", r.State, r.Conversion)
	}
	if len(r.Recipients) == 0 || (len(r.Previous) > 0) != (r.State == StateRekeying) {
		t.Errorf("state %s with %d recipients and %d of the previous key", r.State, len(r.Recipients), len(r.Previous))
	}
}
