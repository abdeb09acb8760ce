package main

import (
	"encoding/base64"
	"fmt"
	"os"

	yaml "gopkg.in/yaml.v2"
)

type found struct {
	server               string
	ca, certificate, key []byte
}

type named struct {
	Name    string
	Cluster struct {
		Server string
		CA     string `yaml:"certificate-authority-data"`
	}
	User struct {
		Certificate string `yaml:"client-certificate-data"`
		Key         string `yaml:"client-key-data"`
	}
	Context struct{ Cluster, User string }
}

// readKubeconfig takes inline data of the current context; file paths, tokens and exec plugins are not looked at.
func readKubeconfig(path string) (*found, error) {
	var file struct {
		Clusters, Users, Contexts []named
		Current                   string `yaml:"current-context"`
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		return nil, err
	}
	pick := func(from []named, name string) *named {
		for i := range from {
			if from[i].Name == name {
				return &from[i]
			}
		}
		return &named{}
	}
	context := pick(file.Contexts, file.Current).Context
	cluster, user := pick(file.Clusters, context.Cluster).Cluster, pick(file.Users, context.User).User
	if cluster.Server == "" {
		return nil, fmt.Errorf("%s: no server in context %q", path, file.Current)
	}
	result := &found{server: cluster.Server}
	for _, each := range []struct {
		text string
		into *[]byte
	}{{cluster.CA, &result.ca}, {user.Certificate, &result.certificate}, {user.Key, &result.key}} {
		if *each.into, err = base64.StdEncoding.DecodeString(each.text); err != nil {
			return nil, fmt.Errorf("%s: %v", path, err)
		}
	}
	return result, nil
}
