// Package vmx reads and writes virtual machine descriptors, and keeps every
// byte that it does not own.
//
// A descriptor is VMware's .vmx file: lines of the form
//
//	key = "value" # comment
//
// with LF or CRLF ends. Keys are case-insensitive and hold no blank, = or #. A
// value without quotes ends at a blank or a #. Inside a value `|XX` is the byte
// with that hexadecimal number, which is how a quote (|22), a pipe (|7C) or a
// line feed (|0A) is written. The key `.encoding` names the character encoding
// of the values, by its IANA or WHATWG name; it is UTF-8 by default and where
// the file begins with a byte order mark. This is the grammar of the dictionary
// library in open-vm-tools (lib/dict/dictll.c). Lines of any other form
// are kept, and are an error only where they would have said something that
// vmcrypt acts on.
//
// [Parse] and [Read] give a [File], [File.Disks] its virtual disks, and
// [File.Record] what vmcrypt has noted about one of them, under the disk's own
// node (a controller and a unit on it, as in "scsi0:0"). [File.SetRecord] puts
// that record directly before the line with the disk's file name: a file that was
// cut short then shows a record without its disk, which is an error, and never
// an encrypted disk without its record. [File.RemoveRecord] restores the file
// byte for byte. While a conversion in place is unfinished ([Record.Unfinished])
// the record also names the conversion and how far it has come.
//
// Every value of a record has exactly one valid spelling. A damaged record is
// refused or reads as a different one, never as the one it was; that the fields
// are genuine is for package dek to tell, by the MAC and the wrapped keys.
package vmx
