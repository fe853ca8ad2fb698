{{/* The operator knows these names, and there is one of it in a cluster: they do not follow the release. */}}
{{- define "entente.selector" -}}
app.kubernetes.io/name: entente
app.kubernetes.io/component: controller
{{- end }}

{{- define "entente.labels" -}}
{{ include "entente.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- define "entente.image" -}}
{{- $image := .Values.image -}}
{{- $name := ternary (printf "%s/%s" $image.registry $image.repository) $image.repository (ne $image.registry "") -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $name $image.digest }}
{{- else -}}
{{ printf "%s:%s" $name ($image.tag | default .Chart.AppVersion) }}
{{- end -}}
{{- end }}

{{/* Name of the first TrustDomain. */}}
{{- define "entente.domain" -}}
{{- .Values.trustDomain.name | default (splitList "." .Values.trustDomain.spiffeTrustDomain | first) -}}
{{- end }}

{{/* Not empty where the bundle endpoint shows a mounted certificate (HTTPSWeb). */}}
{{- define "entente.mountedBundle" -}}
{{- if and .Values.bundleEndpoint.enabled .Values.bundleEndpoint.secretName -}}
true
{{- end -}}
{{- end }}
