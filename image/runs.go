package image

// Runs maps length bytes at offset: data and holes by turns, with borders that are
// multiples of 4096 but for the end of the disk. Part of a run of data may be
// hole, no part of a hole is data. Offset and the end are such borders, too.
func Runs(d Disk, offset, length int64) ([]Extent, error) {
	extents, err := d.Extents(offset, length)
	if err != nil {
		return nil, err
	}
	return cut(extents, offset, offset+length), nil
}
