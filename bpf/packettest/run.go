package packettest

// SKBuff is the context of a tc or cgroup_skb program as BPF_PROG_TEST_RUN takes
// it: struct __sk_buff, with the fields that may be set.
type SKBuff struct {
	_       [10]uint32
	IfIndex uint32
	_       [30]uint32
	GSOSegs uint32
	_       [2]uint32
	GSOSize uint32
	_       [3]uint32
}
