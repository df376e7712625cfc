package codec

// Part returns the codec of a member of a struct, or of a variable of a data
// section, and where in it that begins.
func (c *Codec) Part(name string) (part *Codec, offset int, ok bool) {
	s, isStructure := c.root.(*structure)
	if !isStructure || name == "" {
		return nil, 0, false
	}
	for i := range s.fields {
		if f := &s.fields[i]; f.name == name {
			return &Codec{root: f.node}, f.offset, true
		}
	}
	return nil, 0, false
}
