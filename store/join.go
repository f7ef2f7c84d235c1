package store

import "slices"

// arrange completes the COPYs of a batch. Those that write the same columns of the same table become one.
// Hundreds of routes may lead there with a few rows each: so the server looks at table, partitions and indexes
// once, and visits a page of an index once for the rows of all.
func arrange(live []*insertion) {
	for i, in := range live {
		if !in.copying || in.leader != nil {
			continue
		}
		for _, other := range live[i+1:] { // those of a table stand together
			if other.plan.alike != in.plan.alike && other.plan.table != in.plan.table {
				break
			}
			if other.copying && other.leader == nil && in.plan.joins(other.plan) {
				in.others = append(in.others, other)
			}
		}
		if len(in.others) > 0 && !in.lead() {
			for _, other := range in.others {
				other.insertDuplicates()
			}
			in.others = slices.DeleteFunc(in.others, func(other *insertion) bool { return !other.copying })
			if in.insertDuplicates(); in.copying && len(in.others) > 0 && !in.lead() { // a key of two routes
				in.others = in.others[:0]
			}
		}
		if in.copying && len(in.others) == 0 && !in.insertDuplicates() {
			in.parts[0].copied = in.rows
		}
	}
}

// insertDuplicates makes inserts of the rows if a key stands twice in them and the table takes it once: COPY would fail.
func (in *insertion) insertDuplicates() bool {
	if in.sort(); !in.twice || in.plan.conflict == "" {
		return false
	}
	in.insert()
	return true
}

// joins says whether rows of both plans may stand in one COPY. Where a trigger may let some vanish, it would
// not be known whose, and a table without the unique index would have to be read from end to end to find out.
func (p *plan) joins(other *plan) bool {
	return p.alike == other.alike && !p.drops && !other.drops && p.conflict != ""
}

// lead takes the rows of the others into the COPY, unless a key stands twice in them.
func (in *insertion) lead() bool {
	var twice bool
	if first := in.ahead; first != nil && first.together == len(in.others)+1 {
		in.joint, twice = first.joint, first.jointTwice
	} else { // not all that are written to the table
		in.mixed = append(in.mixed[:0], in.rows...)
		for _, other := range in.others {
			in.mixed = append(in.mixed, other.rows...)
		}
		in.joint, twice = in.mixed, in.plan.sort(in.mixed)
	}
	if twice {
		return false
	}
	for _, other := range in.others {
		other.leader = in
	}
	in.parts[0].copied = in.joint
	return true
}

// share deals out what the COPY says of the rows of all. It is less than all there were if a trigger that is
// newer than the plan let some vanish; the sum is right then, and whose they were is a guess.
func (in *insertion) share() {
	if len(in.others) == 0 {
		return
	}
	left := in.parts[0].affected
	guessed := left != int64(len(in.joint))
	for _, member := range append(in.others, in) {
		member.guessed = guessed
		member.parts[0].affected = min(left, int64(len(member.rows)))
		left -= member.parts[0].affected
	}
}
