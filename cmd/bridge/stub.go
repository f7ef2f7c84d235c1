package main
import "context"
func runCommand(ctx context.Context, args []string, std streams) error {return nil}
func migrateCommand(ctx context.Context, args []string, std streams) error {return nil}
func checkCommand(ctx context.Context, args []string, std streams) error {_,err:= loadConfig();return err}
