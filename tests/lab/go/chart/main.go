// chart renders a Helm chart by Helm's own loader, schema check and engine: what `helm template` prints, without the
// rest of Helm, which takes minutes to build.
//
//	chart FOLDER RELEASE NAMESPACE < values.yaml
//
// It prints one JSON object: {"manifests": {template: text}, "crds": {file: text}, "notes": text}. Values that the
// chart's schema refuses, and templates that fail, end it with 1 and Helm's own words.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

type answer struct {
	Manifests map[string]string `json:"manifests"`
	CRDs      map[string]string `json:"crds"`
	Notes     string            `json:"notes"`
}

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string, given io.Reader, out io.Writer) error {
	if len(arguments) != 3 {
		return errors.New("usage: chart FOLDER RELEASE NAMESPACE < values.yaml")
	}
	text, err := io.ReadAll(given)
	if err != nil {
		return err
	}
	values, err := chartutil.ReadValues(text)
	if err != nil {
		return err
	}
	chart, err := loader.Load(arguments[0])
	if err != nil {
		return err
	}
	if err := chart.Validate(); err != nil {
		return err
	}
	release := chartutil.ReleaseOptions{Name: arguments[1], Namespace: arguments[2], Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(chart, values, release, nil) // checks the schema
	if err != nil {
		return err
	}
	rendered, err := engine.Engine{Strict: true}.Render(chart, all)
	if err != nil {
		return err
	}
	made := answer{Manifests: map[string]string{}, CRDs: map[string]string{}}
	for file, text := range rendered {
		switch name := path.Base(file); {
		case name == "NOTES.txt":
			made.Notes = text
		case !strings.HasPrefix(name, "_") && strings.TrimSpace(text) != "":
			made.Manifests[file] = text
		}
	}
	for _, crd := range chart.CRDObjects() {
		made.CRDs[crd.Filename] = string(crd.File.Data)
	}
	return json.NewEncoder(out).Encode(made)
}
