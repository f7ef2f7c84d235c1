package main

import (
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/template"

	"github.com/kelseyhightower/envconfig"
)

// variable is one environment variable as its struct field declares it.
type variable struct {
	name    string
	setting described // nil for the plain text of routes
	tags    reflect.StructTag
}

// variablesOf lists the variables of a struct in the order of its fields. The names are envconfig's
// own, so that no second rule for them can go another way: its usage printer visits the fields.
func variablesOf(prefix string, spec any) []variable {
	var list []variable
	visit := func(name string, field reflect.Value, tags reflect.StructTag) string {
		setting, _ := reflect.TypeAssert[described](field.Addr())
		list = append(list, variable{name, setting, tags})
		return ""
	}
	each := template.Must(template.New("").Funcs(template.FuncMap{"visit": visit}).
		Parse(`{{range .}}{{visit .Key .Field .Tags}}{{end}}`))
	if err := envconfig.Usaget(prefix, spec, io.Discard, each); err != nil {
		panic(fmt.Sprintf("list variables: %v", err)) // the struct is no struct: any test shows it
	}
	return list
}

// prefixed lists variables that were listed without a prefix as those of one: to ask envconfig for each of many routes
// took longer than all else at their start.
func prefixed(prefix string, plain []variable) []variable {
	list := slices.Clone(plain)
	for i := range list {
		list[i].name = prefix + "_" + list[i].name
	}
	return list
}

// mistake says what was expected instead of the value; empty when the value is fine.
func (v variable) mistake() string {
	_, text, mistake := v.setting.described()
	if values := v.tags.Get("oneof"); mistake == "" && values != "" && !slices.Contains(strings.Fields(values), strings.TrimSpace(text)) {
		return "expected one of " + strings.Join(strings.Fields(values), ", ")
	}
	return mistake
}

// secret says whether the value must not be shown.
func (v variable) secret() bool { return v.tags.Get("secret") != "" }

// shown is the value for messages and logs.
func (v variable) shown() string {
	_, text, _ := v.setting.described()
	if v.secret() && text != "" {
		return hidden
	}
	return text
}

// unquoted is a value without the quotes around it, if there are any that are not meant: those of a password may be,
// and single ones make a constant of an expression, unless it is one that nobody wants.
func (v variable) unquoted(value string) (inner string, ok bool) {
	n := len(value)
	if n < 2 || value[0] != '\'' && value[0] != '"' || value[n-1] != value[0] || v.tags.Get("verbatim") != "" {
		return "", false
	}
	inner = value[1 : n-1]
	kinds := strings.Split(v.kind(), " | ")
	expression := strings.HasPrefix(kinds[len(kinds)-1], "expression")
	meant := expression && value[0] == '\'' && strings.IndexAny(inner, "$@{") != 0 && !slices.Contains(kinds, inner)
	return inner, !meant
}

// hidden stands for a secret.
const hidden = "(hidden)"

// kind is the variable's type for people.
func (v variable) kind() string {
	if values := v.tags.Get("oneof"); values != "" {
		return strings.Join(strings.Fields(values), " | ")
	}
	if v.setting == nil {
		return v.tags.Get("type")
	}
	kind, _, _ := v.setting.described()
	return kind
}

// otherwise is what holds when the variable is not set, for people.
func (v variable) otherwise() string {
	if value := v.tags.Get("default"); value != "" {
		return value
	}
	return v.tags.Get("unset")
}
