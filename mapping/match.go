package mapping

// trie holds the filters of all routes by level, so that a topic meets only the filters that share
// its beginning, however many routes there are.
type trie struct {
	literal string           // a literal level, if there is just one; apart from the map it is found sooner
	only    *trie            // and what is below it
	next    map[string]*trie // literal levels, if there are several
	plus    *trie
	ends    []match // filters that end here
	hash    []match // filters that end in # here
}

// below finds a literal level; nil if there is none.
func (t *trie) below(level string) *trie {
	if t.next != nil {
		return t.next[level]
	}
	if t.literal == level {
		return t.only
	}
	return nil
}

// grow is below, but that it makes the level.
func (t *trie) grow(level string) *trie {
	if next := t.below(level); next != nil {
		return next
	}
	next := &trie{}
	switch {
	case t.next != nil:
		t.next[level] = next
	case t.only != nil:
		t.next = map[string]*trie{t.literal: t.only, level: next}
	default:
		t.literal, t.only = level, next
	}
	return next
}

// match is a filter of a route: both are numbers.
type match struct{ route, filter int }

func (t *trie) add(levels []string, m match) {
	for _, level := range levels {
		switch level {
		case "#":
			t.hash = append(t.hash, m)
			return
		case "+":
			if t.plus == nil {
				t.plus = &trie{}
			}
			t = t.plus
		default:
			t = t.grow(level)
		}
	}
	t.ends = append(t.ends, m)
}

// find appends to found one match per route that wants the topic, in the order of the routes, each
// with the first of its filters that matches.
func (t *trie) find(levels []string, found []match) []match {
	// Topics that begin with $ are not for filters that begin with a wildcard [MQTT-4.7.2-1].
	if len(levels[0]) > 0 && levels[0][0] == '$' {
		if next := t.below(levels[0]); next != nil {
			found = next.walk(levels[1:], found)
		}
		return found
	}
	return t.walk(levels, found)
}

func (t *trie) walk(levels []string, found []match) []match {
	for _, m := range t.hash { // # stands for the level above it too
		found = insert(found, m)
	}
	if len(levels) == 0 {
		for _, m := range t.ends {
			found = insert(found, m)
		}
		return found
	}
	if next := t.below(levels[0]); next != nil {
		found = next.walk(levels[1:], found)
	}
	if t.plus != nil {
		found = t.plus.walk(levels[1:], found)
	}
	return found
}

// insert keeps found sorted by route, with the lowest filter of each.
func insert(found []match, m match) []match {
	i := len(found)
	for i > 0 && found[i-1].route > m.route {
		i--
	}
	if i > 0 && found[i-1].route == m.route {
		found[i-1].filter = min(found[i-1].filter, m.filter)
		return found
	}
	found = append(found, match{})
	copy(found[i+1:], found[i:])
	found[i] = m
	return found
}
