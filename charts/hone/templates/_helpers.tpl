{{- define "hone.name" -}}
{{- default "hone" .Values.nameOverride -}}
{{- end }}

{{- /* The beginning of all names, at most 46 characters, so that the longest suffix, "-operator-metrics", fits into 63.
Release names can be longer, and have dots or a leading digit, which a Service's name can't. A changed name ends with a
digest, so that two releases never share one. */}}
{{- define "hone.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $given := .Release.Name -}}
{{- $name := replace "." "-" $given -}}
{{- if regexMatch "^[0-9]" $name }}{{ $name = printf "hone-%s" $name }}{{ end -}}
{{- if or (ne $name $given) (gt (len $name) 46) -}}
{{- $name = printf "%s-%s" ($name | trunc 37 | trimSuffix "-") (sha256sum $given | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}
{{- end }}

{{- define "hone.operator" -}}
{{ include "hone.fullname" . }}-operator
{{- end }}

{{- /* Releases that watch different namespaces can share one. The operator also waits for the other of
      the two names, by which the pods before an upgrade may elect their leader. */}}
{{- define "hone.lease" -}}
{{- if .Values.watchNamespaces }}{{ include "hone.operator" . }}{{ else }}hone-operator{{ end -}}
{{- end }}

{{- /* Names of cluster-scoped objects, and of objects in other namespaces. */}}
{{- define "hone.clusterOperator" -}}
{{ .Release.Namespace }}-{{ include "hone.operator" . }}
{{- end }}

{{- define "hone.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "hone.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- /* One map of a list of maps. Of a key that several have, the last value counts. */}}
{{- define "hone.merge" -}}
{{- $found := dict -}}
{{- range . }}{{- range $name, $value := . }}{{- $_ := set $found $name $value }}{{- end }}{{- end -}}
{{- toYaml $found -}}
{{- end }}

{{- define "hone.releaseLabels" -}}
app.kubernetes.io/name: {{ include "hone.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- /* Hone's own win, also where an object has none of these. */}}
{{- define "hone.commonLabels" -}}
{{- $given := .Values.global.commonLabels | default dict | deepCopy -}}
{{- range $name, $_ := include "hone.releaseLabels" . | fromYaml }}{{ $_ := unset $given $name }}{{ end -}}
{{- toYaml $given -}}
{{- end }}

{{- define "hone.labels" -}}
{{ include "hone.labelsWith" (list . dict dict) }}
{{- end }}

{{- /* The root, labels that the values give this object, and labels that it must have. */}}
{{- define "hone.labelsWith" -}}
{{- $root := first . -}}
{{- include "hone.merge" (list (include "hone.commonLabels" $root | fromYaml) (index . 1) (include "hone.releaseLabels" $root | fromYaml) (last .)) -}}
{{- end }}

{{- /* The root, and the component that a pod is of. */}}
{{- define "hone.podMetadata" -}}
{{- $root := first . -}}
{{- $own := include "hone.selector" $root | fromYaml | merge (dict "app.kubernetes.io/component" (last .)) -}}
{{- $annotations := dict -}}
{{- /* A sidecar that stays would keep a Job from its end. */}}
{{- if eq (last .) "uninstall" -}}
{{- $_ := set $own "sidecar.istio.io/inject" "false" -}}
{{- $annotations = dict "sidecar.istio.io/inject" "false" "linkerd.io/inject" "disabled" -}}
{{- end -}}
labels: {{- include "hone.merge" (list (include "hone.commonLabels" $root | fromYaml) $root.Values.operator.podLabels $own) | nindent 2 }}
{{- with include "hone.merge" (list ($root.Values.operator.podAnnotations | default dict) $annotations) | fromYaml }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "hone.selector" -}}
app.kubernetes.io/name: {{ include "hone.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{- /* Whether the Job of the uninstallation has a ClusterRole. By Roles, one namespace that is gone by then would keep Helm
from all others; but who installs nothing cluster-scoped can have no other rights. */}}
{{- define "hone.uninstallsByClusterRole" -}}
{{- $others := without (.Values.watchNamespaces | default list) .Release.Namespace -}}
{{- if or (not .Values.watchNamespaces) (and $others (or .Values.crds.enabled .Values.admission.enabled)) -}}
true
{{- end -}}
{{- end }}

{{- /* Where, and as whom, pods of the operator's image run. */}}
{{- define "hone.podOptions" -}}
{{- $secrets := list }}
{{- range concat (.Values.global.imagePullSecrets | default list) (.Values.operator.imagePullSecrets | default list) }}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- with $secrets | uniq }}
imagePullSecrets: {{- toYaml . | nindent 0 }}
{{- end }}
enableServiceLinks: false
{{- with .Values.operator.securityContext }}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operator.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.operator.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.operator.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .Values.operator.hostAliases }}
hostAliases: {{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{- /* What the operator does in each namespace that it watches. Each verb is used: a test counts. */}}
{{- define "hone.rules" -}}
- apiGroups: [hone.dev]
  resources: [finetunejobs, inferenceservices]
  verbs: [list, watch]
- apiGroups: [hone.dev]
  resources: [finetunejobs/status, inferenceservices/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
# Why a pod does not start: the kubelet's and the scheduler's words.
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
# Children block the deletion of their owner in the foreground, where the cluster checks who may say so.
- apiGroups: [hone.dev]
  resources: [finetunejobs/finalizers, inferenceservices/finalizers]
  verbs: [update]
{{- end }}

{{- define "hone.hook" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
