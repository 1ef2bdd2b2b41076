{{- define "hone.labels" -}}
app.kubernetes.io/name: hone
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "hone.selector" -}}
app.kubernetes.io/name: hone
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "hone.operator" -}}
{{ .Release.Name }}-operator
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
  verbs: [get, list, watch, create, patch]
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
