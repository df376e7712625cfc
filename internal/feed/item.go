package feed

import (
	"cmp"
	"time"

	"bpfnet/internal/fault"
)

// role is what a member of an object says about the entry that the object is.
type role int

const (
	_ role = iota
	roleAddress
	roleName
	roleReason
	roleList
	roleExpires
	roleType
)

// roles are the members that are read. They are those of bpfnet's own export, of
// Spamhaus, and of what cloud providers publish.
var roles = map[string]role{
	"cidr": roleAddress, "prefix": roleAddress, "ip": roleAddress, "address": roleAddress, "network": roleAddress,
	"ip_prefix": roleAddress, "ipv6_prefix": roleAddress, "ipv4Prefix": roleAddress, "ipv6Prefix": roleAddress,
	"domain": roleName, "host": roleName,
	"reason": roleReason, "comment": roleReason, "sblid": roleReason,
	"list":       roleList,
	"expires_at": roleExpires,
	"type":       roleType,
}

// containers are the members that hold entries, or what holds entries.
var containers = map[string]bool{
	"entries": true, "prefixes": true, "ipv6_prefixes": true, "addresses": true, "ipv6_addresses": true,
	"cidrs": true, "ipv4_cidrs": true, "ipv6_cidrs": true, "ips": true, "networks": true, "domains": true, "hosts": true,
	"data": true, "items": true, "result": true, "results": true, "values": true, "properties": true, "addressPrefixes": true, "regions": true,
}

// scalar is a value of JSON or YAML without parts.
type scalar struct {
	text         []byte
	isText, null bool
	at           place
}

// item is an object that is being read.
type item struct {
	at            place
	address, name found
	entry         Entry
	holds         bool // entries stand in it
	metadata      bool // it says something about the list
	err           error
	wrongAt       place
}

// found is a text that may be an entry.
type found struct {
	text string
	at   place
}

func (it *item) fail(at place, err error) {
	if it.err == nil {
		it.err, it.wrongAt = err, at
	}
}

// member takes one of an object's. Those without a role, and null, say nothing.
func (it *item) member(name string, v scalar) {
	role := roles[name]
	switch {
	case role == 0 || v.null:
		return
	case !v.isText:
		if role == roleAddress || role == roleName {
			it.fail(v.at, wrong(string(v.text), "is not a text"))
		}
		return
	}
	switch role {
	case roleAddress:
		it.address.take(v)
	case roleName:
		it.name.take(v)
	case roleReason:
		it.entry.Reason = cmp.Or(it.entry.Reason, reason(v.text))
	case roleList:
		it.entry.List = reason(v.text)
	case roleType:
		it.metadata = string(v.text) == "metadata"
	case roleExpires:
		it.expires(v)
	}
}

// take keeps the first.
func (f *found) take(v scalar) {
	if f.text == "" {
		*f = found{string(v.text), v.at}
	}
}

func (it *item) expires(v scalar) {
	at, err := time.Parse(time.RFC3339, string(v.text))
	if err != nil {
		it.fail(v.at, wrong(string(v.text), "is not a time such as 2006-01-02T15:04:05Z"))
	}
	it.entry.Expires = at
}

var errNoMember = fault.New(fault.ErrUsage, "the object has no member that is an entry: cidr, prefix, ip, address, network, ip_prefix, ipv6_prefix, domain or host")

// finish adds the entry that an object is.
func (r *reader) finish(it *item) error {
	chosen := it.address
	if chosen.text == "" || r.Domains && it.name.text != "" {
		chosen = it.name
	}
	switch {
	case it.err != nil:
		r.wrong(it.wrongAt, it.err)
	case chosen.text != "":
		return r.entry([]byte(chosen.text), chosen.at, it.entry)
	case !it.holds && !it.metadata:
		r.wrong(it.at, errNoMember)
	}
	return nil
}
