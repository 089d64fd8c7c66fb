package api

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// schema is a schema of OpenAPI, as far as it is used.
type schema struct {
	Type       string
	Format     string
	Nullable   bool
	Required   []string
	Properties map[string]*schema
	Items      *schema
	Reference  string `yaml:"$ref"`
	Additional *bool  `yaml:"additionalProperties"`
}

type document struct {
	Components struct{ Schemas map[string]*schema }
}

func parseDocument(t *testing.T) *document {
	t.Helper()
	d := new(document)
	if err := yaml.Unmarshal(OpenAPI, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestSchemas: what the document says of bodies and answers is what they are.
func TestSchemas(t *testing.T) {
	d := parseDocument(t)
	types := map[string]any{
		"List": List{}, "VM": VM{}, "Disk": Disk{}, "UnlockRequest": UnlockRequest{}, "LockRequest": LockRequest{},
		"Agent": Agent{}, "Failure": failure{}, "Conversion": Conversion{}, "Overview": Overview{}, "KeyManager": KeyManager{},
		"Warning": Warning{},
	}
	for name, s := range d.Components.Schemas {
		value, ok := types[name]
		if !ok {
			t.Errorf("there is no type of the schema %s", name)
			continue
		}
		delete(types, name)
		d.compare(t, name, s, reflect.TypeOf(value))
		if closed := s.Additional != nil && !*s.Additional; closed != strings.HasSuffix(name, "Request") {
			t.Errorf("%s: unknown fields are an error in requests, and nowhere else", name)
		}
	}
	for name := range types {
		t.Errorf("there is no schema %s", name)
	}
}

// compare compares a schema with the JSON of a type.
func (d *document) compare(t *testing.T, where string, s *schema, typ reflect.Type) {
	t.Helper()
	if s.Reference != "" {
		s = d.Components.Schemas[strings.TrimPrefix(s.Reference, "#/components/schemas/")]
	}
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	switch {
	case typ == reflect.TypeFor[time.Time]():
		if s.Type != "string" || s.Format != "date-time" {
			t.Errorf("%s is %s %s, not a time", where, s.Type, s.Format)
		}
	case typ.Kind() == reflect.Struct:
		d.compareFields(t, where, s, typ)
	case typ.Kind() == reflect.Slice:
		d.compare(t, where+"[]", s.Items, typ.Elem())
	default:
		want := map[reflect.Kind]string{reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer",
			reflect.Int64: "integer", reflect.Uint64: "integer", reflect.Float64: "number"}
		if s.Type != want[typ.Kind()] {
			t.Errorf("%s is %s, not %s", where, s.Type, typ)
		}
	}
}

func (d *document) compareFields(t *testing.T, where string, s *schema, typ reflect.Type) {
	t.Helper()
	known := map[string]bool{}
	for field := range typ.Fields() {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		known[name] = true
		property, ok := s.Properties[name]
		if !ok {
			t.Errorf("%s: the document has no %s", where, name)
			continue
		}
		if required := options != "omitempty"; slices.Contains(s.Required, name) != required {
			t.Errorf("%s.%s: required: %t", where, name, !required)
		} else if nullable := required && field.Type.Kind() == reflect.Pointer && where != "Failure"; property.Nullable != nullable {
			t.Errorf("%s.%s: nullable: %t", where, name, property.Nullable)
		}
		d.compare(t, where+"."+name, property, field.Type)
	}
	for name := range s.Properties {
		if !known[name] {
			t.Errorf("%s: there is no %s", where, name)
		}
	}
}
