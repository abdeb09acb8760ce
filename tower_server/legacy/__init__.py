"""The dialect `kubesphere-v1` in the server's role: Go Tower's agents, unchanged, on a port of their own."""
