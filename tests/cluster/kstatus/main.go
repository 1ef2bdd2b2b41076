// What tools make of the status of objects: one JSON object a line comes in, one JSON answer a line goes out.
//
// Each answer has the status of kstatus, the library of Flux and Helm; with --lua FILE also that of a health check of
// Argo CD; with --cel FILE, a JSON object of the kinds with their expressions, also that of Flux's healthCheckExprs.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const longestLine = 8 << 20

type answer struct {
	Kstatus string `json:"kstatus"`
	Message string `json:"message"`
	Argo    string `json:"argo,omitempty"`
	Flux    string `json:"flux,omitempty"`
}

func main() {
	lua := flag.String("lua", "", "the file with Argo CD's health check")
	expressions := flag.String("cel", "", "the file with Flux's expressions by kind")
	flag.Parse()
	if err := run(*lua, *expressions); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(luaFile, celFile string) error {
	script, err := readOptional(luaFile)
	if err != nil {
		return err
	}
	checks, err := readChecks(celFile)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, longestLine)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(lines.Bytes()); err != nil {
			return err
		}
		found, err := judge(object, script, checks)
		if err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
		if err := out.Encode(found); err != nil {
			return err
		}
	}
	return lines.Err()
}

func judge(object *unstructured.Unstructured, script string, checks map[string]expressions) (*answer, error) {
	result, err := status.Compute(object)
	if err != nil {
		return nil, err
	}
	found := &answer{Kstatus: string(result.Status), Message: result.Message}
	if script != "" {
		if found.Argo, err = argoHealth(object, script); err != nil {
			return nil, err
		}
	}
	if check, ok := checks[object.GetKind()]; ok {
		found.Flux, err = check.evaluate(object.UnstructuredContent())
	}
	return found, err
}

func readOptional(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	content, err := os.ReadFile(file)
	return string(content), err
}
