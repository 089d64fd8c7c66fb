package vmx

import (
	"reflect"
	"testing"
)

func TestRecordRoundTrip(t *testing.T) {
	for name, data := range samples(t) {
		t.Run(name, func(t *testing.T) {
			f := parse(t, string(data))
			disks, err := f.Disks()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range disks {
				if err := f.SetRecord(d.Node, newRecord()); err != nil {
					t.Fatal(err)
				}
			}
			f = parse(t, string(f.Bytes()))
			for _, d := range disks {
				got, err := f.Record(d.Node)
				if err != nil || !reflect.DeepEqual(got, newRecord()) {
					t.Errorf("%s: record is %+v, %v", d.Node, got, err)
				}
				if err := f.RemoveRecord(d.Node); err != nil {
					t.Fatal(err)
				}
			}
			wantBytes(t, f, data)
		})
	}
}
