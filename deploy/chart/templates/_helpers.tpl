{{- define "tower.labels" -}}
app.kubernetes.io/part-of: tower
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "tower.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* server.yaml: what the values say, and `config` beside it. A key that a value of its own has is refused there. */}}
{{- define "tower.config" -}}
{{- range $key, $named := dict "host" "host" "public_url" "publicUrl" "ports" "ports" "listen" "" "health_address" "" "store" "" "operators" "" -}}
{{- if hasKey $.Values.config $key -}}
{{- fail (printf "config.%s: %s" $key (empty $named | ternary "the chart sets it, and objects rest on it" (printf "use the value %s" $named))) -}}
{{- end -}}
{{- end -}}
{{- $made := dict "host" .Values.host "listen" ":8443" "health_address" ":9443" "store" (dict "kind" "kubernetes") "operators" (dict "listen" "127.0.0.1:8445") -}}
{{- with .Values.publicUrl }}{{ $_ := set $made "public_url" . }}{{ end -}}
{{- if or (ne .Values.ports.range "6000-7000") (ne (int .Values.ports.kubesphereOffset) 10000) -}}
{{- $_ := set $made "ports" (dict "range" .Values.ports.range "kubesphere_offset" (int .Values.ports.kubesphereOffset)) -}}
{{- end -}}
{{- toYaml (merge $made .Values.config) -}}
{{- end }}

{{/* The port for Go Tower's agents, where `config` opens it. */}}
{{- define "tower.legacyPort" -}}
{{- if dig "kubesphere_v1" "enabled" false .Values.config -}}
{{- dig "kubesphere_v1" "listen" ":8080" .Values.config | toString | regexFind "[0-9]+$" -}}
{{- end -}}
{{- end }}

{{/* Seconds: a minute above `config.drain`, whose streams a kubelet would cut. */}}
{{- define "tower.grace" -}}
{{- $seconds := 0.0 -}}
{{- $units := dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 -}}
{{- range regexFindAll "[0-9.]+[a-z]*" (dig "drain" "5s" .Values.config | toString) -1 -}}
{{- $factor := get $units (regexReplaceAll "[0-9.]" . "") | default 1.0 -}}
{{- $seconds = addf $seconds (mulf (regexFind "[0-9.]+" .) $factor) -}}
{{- end -}}
{{- max 90 (add 60 (ceil $seconds)) -}}
{{- end }}
