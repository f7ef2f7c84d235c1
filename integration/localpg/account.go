//go:build unix

package localpg

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// serverAccount returns the account that the server runs as: nil for the caller's own. PostgreSQL
// refuses to run as root, so root's server belongs to postgres, or else to nobody.
func serverAccount() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		credential, err := credentialOf(account)
		if err != nil {
			return nil, fmt.Errorf("look up account %s: %w", name, err)
		}
		return credential, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no account postgres or nobody to run it as")
}

func credentialOf(account *user.User) (*syscall.Credential, error) {
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	credential := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	// Left empty, the list would drop root's groups but also those the account has, such as the one
	// that may read the certificates. Without a readable group file the primary group must do.
	ids, err := account.GroupIds()
	if err != nil {
		return credential, nil //nolint:nilerr // see above
	}
	for _, id := range ids {
		if group, err := strconv.ParseUint(id, 10, 32); err == nil {
			credential.Groups = append(credential.Groups, uint32(group))
		}
	}
	return credential, nil
}
