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
