// Package blocklist keeps lists of addresses in the maps that the blocklist
// programs read: named lists with an action each, and an allow list that
// overrules them. It changes them so that each packet meets the list as it was
// or as it will be.
package blocklist

import (
	"context"
	"net/netip"
	"time"

	"bpfnet/bpf"
	"bpfnet/internal/dns"
)

// The names of lists that have a meaning.
const (
	DefaultList = "default" // where entries go when no list is named
	AllowList   = "allow"   // overrules all others
)

// Action is what happens to a packet from or to an address on a list.
type Action string

// The actions of lists.
const (
	Drop         Action = "drop"
	Alert        Action = "alert" // the packet goes on, and is reported
	AlertAndDrop Action = "alert+drop"
	Allow        Action = "allow" // of the allow list alone
)

// Match is which address of a packet is looked up.
type Match string

// What of a packet is looked up in a list.
const (
	Source      Match = "source"
	Destination Match = "destination"
	Both        Match = "both"
)

// Entry is an entry of a list: a prefix, a domain, or an address of a domain.
type Entry struct {
	List    string
	Prefix  netip.Prefix // invalid for a domain
	Domain  string       // or the one that the address belongs to; "": a prefix
	FoundBy FoundBy      // of an address of a domain
	Status  Status       // of a domain
	Checked time.Time    // when somebody asked for the domain last; zero: never
	Action  Action
	Reason  string    // "": none is known
	Expires time.Time // zero: never
	Hits    *Hits     // nil unless they were asked for; of a domain those of its addresses
}

// FoundBy is how an address of a domain was found.
type FoundBy string

// How addresses of domains are found.
const (
	ByResolver FoundBy = "resolver"
	ByAnswer   FoundBy = "answer" // on the wire
)

// Status is how the last question for a domain ended.
type Status string

// What is known of a domain. Wildcards can't be asked for.
const (
	Pending  Status = "pending" // nobody has asked yet
	Resolved Status = "resolved"
	NoName   Status = "no_name" // it isn't there, or has no address
	Failed   Status = "failed"  // no server had an answer
	Wildcard Status = "wildcard"
)

// Hits are what the programs counted for an entry since it was first hit.
type Hits struct {
	Packets, Bytes uint64
	LastSeen       time.Time // zero: never
}

// ListHits are what the programs counted for one entry, or one address of a domain,
// of a list. They go with the entry.
type ListHits struct {
	ID             HitsID
	List           string
	Action         Action
	Packets, Bytes uint64
}

// HitsID tells the hits of one entry from those of others.
type HitsID bpf.HitKey

// List is a list without its entries.
type List struct {
	Name        string    `json:"list"`
	Action      Action    `json:"action"`
	Match       Match     `json:"match"`
	Entries     uint64    `json:"entries"`
	IPv4        uint64    `json:"ipv4_entries"`
	IPv6        uint64    `json:"ipv6_entries"`
	Domains     uint64    `json:"domains"`
	Addresses   uint64    `json:"domain_addresses"` // that are blocked for them
	MemoryBytes uint64    `json:"memory_bytes"`     // of the maps with its entries
	ChangedAt   time.Time `json:"changed_at"`
}

// Counter is how many packets shared a fate.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Overview is all lists, and what became of packets that met them.
type Overview struct {
	Lists       []List             `json:"lists"`
	MemoryBytes uint64             `json:"memory_bytes"` // of all maps, filters and counters too
	Packets     map[string]Counter `json:"packets"`      // by fate: dropped, alerted, allowed, …
}

// Change is what a writer did, or with a dry run would do.
type Change struct {
	Changed   bool
	List      string
	Added     uint64
	Updated   uint64 // another reason or another end
	Removed   uint64
	Unchanged uint64
	Entries   uint64 // of the list afterwards
	Expired   uint64 // entries of all lists that had ended and were cleared
	Refused   []Refusal
	RefusedN  uint64 // how many, of which Refused has the first ones
	Covered   uint64 // entries left out because others cover them
	Notes     []string

	// Of domains.
	AddressesAdded   uint64
	AddressesRemoved uint64
	Resolved         uint64    // domains that were asked for
	Unanswered       uint64    // of those without an answer, or with half of one
	Failed           []Refusal // the first domains that have no address, and why
	FailedN          uint64
}

// Refusal is an entry that was not taken.
type Refusal struct {
	Where  string // "feed.txt:3:1", or the entry as it was given
	Reason string
}

// AddRequest says what to put on a list.
type AddRequest struct {
	List     string
	Prefixes []netip.Prefix
	Domains  []string      // lower case, without the last dot; may begin with "*."
	Grace    time.Duration // how long an address stays after it left the answer; 0: DefaultGrace
	Reason   string
	Lifetime time.Duration // 0: for ever
	Force    bool          // take what locks people out, too
	DryRun   bool
}

// Item is an entry that is to be imported.
type Item struct {
	Prefix       netip.Prefix
	Domain       string // instead of a prefix
	Reason       string
	Expires      time.Time // zero: as the request says
	Source       string    // the file it is from
	Line, Column int       // where it stands there
}

// ImportRequest says what to put on a list from files.
type ImportRequest struct {
	List string
	// Read passes what the files hold on. It is called before there is a lock that
	// others wait for. An error means that nothing is to be changed.
	Read      func(add func(Item) error, refuse func(Refusal)) error
	Lifetime  time.Duration // of entries that don't say it; 0: for ever
	Replace   bool          // remove what isn't in the files
	Aggregate bool          // leave out what other entries cover
	Strict    bool          // nothing goes in when something is refused
	Force     bool
	DryRun    bool
}

// RemoveRequest says what to take off a list.
type RemoveRequest struct {
	List     string
	Prefixes []netip.Prefix
	Domains  []string // as they were added
	DryRun   bool
}

// SetRequest changes what a list does; "" leaves it as it is.
type SetRequest struct {
	List   string
	Action Action
	Match  Match
	DryRun bool
}

// Found is an entry that covers an address.
type Found struct {
	Entry
	Decides bool // the verdict is this one's
}

// Verdict is what would happen to a packet from or to an address.
type Verdict struct {
	Address netip.Addr // invalid if it is about a domain
	Domain  string
	Action  string // drop, alert, alert+drop, allow, or pass
	Found   []Found
}

// API is what the commands call. Every method that changes something knows
// DryRun, holds the lock, and clears what has expired.
type API interface {
	Add(ctx context.Context, r AddRequest) (Change, error)
	Remove(ctx context.Context, r RemoveRequest) (Change, error)
	Import(ctx context.Context, r ImportRequest) (Change, error)
	// Clear empties a list and frees its name; without a name all of them.
	Clear(ctx context.Context, list string, dryRun bool) (Change, error)
	Set(ctx context.Context, r SetRequest) (Change, error)
	// Sync clears what has ended, and asks for domains that are due.
	Sync(ctx context.Context, dryRun bool) (Change, error)
	// Refresh asks for domains that are due, and clears addresses of domains that
	// have ended. next is how long there will be nothing to do.
	Refresh(ctx context.Context) (change Change, next time.Duration, err error)
	// Follow returns what takes answers that were seen on the wire; Close it.
	Follow() Follower
	Overview(ctx context.Context) (Overview, error)
	// Entries visits the entries of a list, or of all, sorted.
	Entries(ctx context.Context, list string, hits bool, visit func(Entry) error) error
	// Hits visits the hits of all entries that were hit.
	Hits(ctx context.Context, visit func(ListHits)) error
	Test(ctx context.Context, address netip.Addr) (Verdict, error)
	// TestDomain returns the domains on lists that cover a name.
	TestDomain(ctx context.Context, name string) (Verdict, error)
	// Events opens what lists with alert report. It has one reader: ErrConflict
	// says which process reads it, unless the request steals; ErrNotFound, that
	// nobody has made lists or loaded a program.
	Events(ctx context.Context, r EventsRequest) (EventSource, error)
}

// Follower blocks addresses that domains on lists are seen to have.
type Follower interface {
	// Observe returns when the addresses of an answer are in force, with the
	// domains on lists that they are addresses of.
	Observe(ctx context.Context, a dns.Answer) ([]Sighting, error)
	Close()
}
