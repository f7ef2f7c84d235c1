// Schemas writes JSON schemas for kubeconform, from what projects publish in their Go modules, so that
// manifests are validated without asking anybody:
//
//	schemas OUT SWAGGER.json CRD.yaml...
//
// SWAGGER.json is api/openapi-spec/swagger.json of k8s.io/kubernetes. The schemas are strict: a field
// that there is not is a mistake.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: schemas OUT SWAGGER.json CRD.yaml...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "schemas:", err)
		os.Exit(1)
	}
}

type object = map[string]any

func run(out, swagger string, crds []string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	data, err := os.ReadFile(swagger)
	if err != nil {
		return err
	}
	var api struct {
		Definitions map[string]object `json:"definitions"`
	}
	if err := json.Unmarshal(data, &api); err != nil {
		return fmt.Errorf("%s: %w", swagger, err)
	}
	for name, definition := range api.Definitions {
		kinds, _ := definition["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) != 1 { // options of requests have dozens, parts of objects none
			continue
		}
		kind := kinds[0].(object)
		schema := resolver{api.Definitions}.strict(definition, map[string]bool{name: true}).(object)
		if err := write(out, kind["group"].(string), kind["version"].(string), kind["kind"].(string), schema); err != nil {
			return err
		}
	}
	for _, path := range crds {
		if err := custom(out, path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// custom writes the schemas of a file of CustomResourceDefinitions.
func custom(out, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var crd struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct {
						OpenAPI object `yaml:"openAPIV3Schema"`
					}
				}
			}
		}
		err := decoder.Decode(&crd)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, version := range crd.Spec.Versions {
			schema := resolver{}.strict(version.Schema.OpenAPI, nil).(object)
			schema["properties"].(object)["metadata"] = object{"type": "object"}
			if err := write(out, crd.Spec.Group, version.Name, crd.Spec.Names.Kind, schema); err != nil {
				return err
			}
		}
	}
}

// write names the file as kubeconform looks for it.
func write(out, group, version, kind string, schema object) error {
	apiVersion := strings.TrimPrefix(group+"/"+version, "/")
	properties := schema["properties"].(object)
	properties["apiVersion"] = object{"enum": []string{apiVersion}}
	properties["kind"] = object{"enum": []string{kind}}
	schema["required"] = append(strs(schema["required"]), "apiVersion", "kind")
	short, _, _ := strings.Cut(group, ".")
	name := strings.ToLower(kind)
	if short != "" {
		name += "-" + short
	}
	data, err := json.Marshal(schema)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, name+"-"+version+".json"), data, 0o644)
}

func strs(list any) []any {
	all, _ := list.([]any)
	return all
}

type resolver struct{ definitions map[string]object }

// strict returns a schema with its references resolved, in which objects take the fields that are named
// and no others. within are the definitions that it stands in: recursion ends with "anything".
func (r resolver) strict(schema any, within map[string]bool) any {
	switch schema := schema.(type) {
	case []any:
		list := make([]any, len(schema))
		for i, item := range schema {
			list[i] = r.strict(item, within)
		}
		return list
	case object:
		if reference, ok := schema["$ref"].(string); ok {
			return r.follow(reference, within)
		}
		return r.strictObject(schema, within)
	}
	return schema
}

func (r resolver) follow(reference string, within map[string]bool) any {
	name := reference[strings.LastIndex(reference, "/")+1:]
	switch {
	case within[name]:
		return object{}
	case strings.HasSuffix(name, ".Quantity"):
		return object{"type": []string{"string", "number", "null"}}
	case strings.HasSuffix(name, ".IntOrString"):
		return object{"type": []string{"string", "integer", "null"}}
	}
	deeper := maps.Clone(within)
	deeper[name] = true
	return r.strict(r.definitions[name], deeper)
}

func (r resolver) strictObject(schema object, within map[string]bool) object {
	result := object{}
	for key, value := range schema {
		switch {
		case key == "description" || key == "format" || key == "default" || key == "nullable" || strings.HasPrefix(key, "x-kubernetes-"):
		case key == "properties": // whose keys are names, not keywords
			properties := object{}
			for name, property := range value.(object) {
				properties[name] = r.strict(property, within)
			}
			result[key] = properties
		default:
			result[key] = r.strict(value, within)
		}
	}
	if schema["x-kubernetes-int-or-string"] == true {
		result["type"] = []string{"string", "integer"}
	}
	_, free := result["additionalProperties"]
	if result["properties"] != nil && !free && schema["x-kubernetes-preserve-unknown-fields"] != true {
		result["additionalProperties"] = false
	}
	if kind, ok := result["type"].(string); ok && len(within) != 1 {
		result["type"] = []string{kind, "null"} // the server takes a field without a value for one that is not there
	}
	return result
}
