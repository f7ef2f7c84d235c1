package localpg

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNoBinaries says that no PostgreSQL server is installed where [FindBin] looks.
var ErrNoBinaries = errors.New("no PostgreSQL server binaries found: looked in $PG_BIN, in PATH, " +
	"at pg_config --bindir and in the folders where packages put them")

// packaged are the folders of the usual packages: Debian, PGDG's RPMs, a build from source,
// Homebrew on both kinds of Mac, Postgres.app.
var packaged = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/usr/local/pgsql/bin",
	"/opt/homebrew/opt/postgresql@*/bin",
	"/usr/local/opt/postgresql@*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// FindBin returns the folder that holds initdb and postgres. A folder named by $PG_BIN comes first,
// then what PATH and pg_config lead to, then the packages' folders with the newest version first.
// The error is [ErrNoBinaries] when there is none.
func FindBin() (string, error) {
	var candidates []string
	if dir := os.Getenv("PG_BIN"); dir != "" {
		candidates = append(candidates, dir)
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		// PATH often holds a link, and initdb searches for postgres beside its own real file.
		if file, err := filepath.EvalSymlinks(path); err == nil {
			candidates = append(candidates, filepath.Dir(file))
		}
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		candidates = append(candidates, strings.TrimSpace(string(out)))
	}
	for _, pattern := range packaged {
		dirs, _ := filepath.Glob(pattern) // the patterns are constants, so well formed
		slices.SortFunc(dirs, func(a, b string) int { return compareVersions(b, a) })
		candidates = append(candidates, dirs...)
	}
	for _, dir := range candidates {
		if executable(filepath.Join(dir, "initdb")) && executable(filepath.Join(dir, "postgres")) {
			return dir, nil
		}
	}
	return "", ErrNoBinaries
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// compareVersions compares paths by the numbers in them, so that 9.6 < 15 < 18.
func compareVersions(a, b string) int {
	return slices.Compare(numbers(a), numbers(b))
}

func numbers(path string) []int {
	var all []int
	for _, digits := range strings.FieldsFunc(path, func(r rune) bool { return r < '0' || r > '9' }) {
		n, _ := strconv.Atoi(digits) // digits only; an overflow sorts as the greatest int
		all = append(all, n)
	}
	return all
}
