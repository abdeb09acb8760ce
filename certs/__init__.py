"""The tower CA, identities, enrolment, serving and client certificates, revocation, kubeconfigs."""
