package main

import (
	"encoding/json"
	"fmt"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/ext"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// expressions are one entry of spec.healthCheckExprs of a Flux Kustomization.
type expressions struct {
	InProgress string `json:"inProgress"`
	Failed     string `json:"failed"`
	Current    string `json:"current"`
}

func readChecks(file string) (map[string]expressions, error) {
	found := map[string]expressions{}
	content, err := readOptional(file)
	if err != nil || content == "" {
		return found, err
	}
	return found, json.Unmarshal([]byte(content), &found)
}

// evaluate follows the rules of Flux: a generation that was not observed is in progress, then the first expression that
// holds decides, and an object for which none holds is in progress.
func (check expressions) evaluate(object map[string]any) (string, error) {
	observed, ok, err := unstructured.NestedInt64(object, "status", "observedGeneration")
	if err != nil {
		return "", err
	}
	generation, _, err := unstructured.NestedInt64(object, "metadata", "generation")
	if err != nil || (ok && observed != generation) {
		return "InProgress", err
	}
	for _, one := range []struct{ status, text string }{
		{"InProgress", check.InProgress}, {"Failed", check.Failed}, {"Current", check.Current},
	} {
		if one.text == "" {
			continue
		}
		if holds, err := evaluate(one.text, object); err != nil || holds {
			return one.status, err
		}
	}
	return "InProgress", nil
}

func evaluate(text string, object map[string]any) (bool, error) {
	environment, err := cel.NewEnv(
		cel.HomogeneousAggregateLiterals(), cel.EagerlyValidateDeclarations(true), cel.DefaultUTCTimeZone(true),
		cel.CrossTypeNumericComparisons(true), cel.OptionalTypes(), ext.Strings(), ext.Sets(), ext.Encoders(),
	)
	if err != nil {
		return false, err
	}
	parsed, issues := environment.Parse(text)
	if issues.Err() != nil {
		return false, issues.Err()
	}
	program, err := environment.Program(parsed)
	if err != nil {
		return false, err
	}
	value, _, err := program.Eval(object)
	if err != nil {
		return false, fmt.Errorf("%s: %w", text, err)
	}
	holds, ok := value.(types.Bool)
	if !ok {
		return false, fmt.Errorf("%s is %s, and not a bool", text, value.Type().TypeName())
	}
	return bool(holds), nil
}
