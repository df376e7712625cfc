package bpftool

import (
	"bytes"
	"encoding/json"
)

// Object is a JSON object whose keys stay in the order in which bpftool prints
// them.
type Object []Field

// Field is a key and what encoding/json can write.
type Field struct {
	Name  string
	Value any
}

func (o *Object) add(name string, value any) { *o = append(*o, Field{name, value}) }

// Get returns the value of a key, nil if there is none.
func (o Object) Get(name string) any {
	for _, f := range o {
		if f.Name == name {
			return f.Value
		}
	}
	return nil
}

// MarshalJSON writes the fields in their order.
func (o Object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(f.Name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(f.Value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// worded is the word for a number of an enum, or the number when it has none:
// bpftool prints what it doesn't know as a number.
func worded(words []string, number uint32) any {
	if number < uint32(len(words)) && words[number] != "" {
		return words[number]
	}
	return number
}
