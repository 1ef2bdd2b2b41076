{{- /* Values that would be given twice, of which Kubernetes or the operator uses one. */}}
{{- define "hone.refuseConflicts" -}}
{{- $variables := dict "HONE_RUNTIME_IMAGE" "runtime.image" "HONE_VLLM_IMAGE" "runtime.vllmImage" "HONE_SGLANG_IMAGE" "runtime.sglangImage" "HONE_TGI_IMAGE" "runtime.tgiImage" "HONE_GPU_GROUPS" "runtime.supplementalGroups" "HONE_REQUIRE_GPUS" "runtime.requireGpus" "HONE_POD_SECURITY_LEVEL" "runtime.podSecurityLevel" "HONE_LOG_LEVEL" "operator.logLevel" -}}
{{- $seen := dict -}}
{{- range .Values.operator.extraEnv -}}
{{- $name := toString .name -}}
{{- with get $variables $name }}{{ fail (printf "operator.extraEnv names %s, which the chart sets. Set %s instead." $name .) }}{{ end -}}
{{- if hasKey $seen $name }}{{ fail (printf "operator.extraEnv names %s twice. Remove one of the two entries." $name) }}{{ end -}}
{{- $_ := set $seen $name true -}}
{{- end -}}
{{- $arguments := dict "--runtime-image" "runtime.image" "--vllm-image" "runtime.vllmImage" "--sglang-image" "runtime.sglangImage" "--tgi-image" "runtime.tgiImage" "--gpu-groups" "runtime.supplementalGroups" "--require-gpus" "runtime.requireGpus" "--pod-security-level" "runtime.podSecurityLevel" "--log-level" "operator.logLevel" "--log-format" "operator.logFormat" "--namespace" "watchNamespaces" -}}
{{- range .Values.operator.extraArgs -}}
{{- $name := regexFind "^[^=]*" . -}}
{{- /* The operator takes beginnings, too. */}}
{{- range $argument, $value := $arguments -}}
{{- if and (gt (len $name) 2) (hasPrefix $name $argument) }}{{ fail (printf "operator.extraArgs has %s, which the chart sets. Set %s instead." $name $value) }}{{ end -}}
{{- end -}}
{{- range $argument := list "--listen" "--lease-name" "--lease-namespace" "--former-lease" -}}
{{- if and (gt (len $name) 2) (hasPrefix $name $argument) }}{{ fail (printf "operator.extraArgs has %s, on whose value other objects of the chart depend. Remove it." $name) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $seen = dict "tmp" true -}}
{{- range .Values.operator.volumes -}}
{{- $name := toString .name -}}
{{- if hasKey $seen $name }}{{ fail (printf "operator.volumes names %s, and the pod has another volume of this name. Give it another name." $name) }}{{ end -}}
{{- $_ := set $seen $name true -}}
{{- end -}}
{{- $seen = dict "/tmp" true -}}
{{- range .Values.operator.volumeMounts -}}
{{- $path := toString .mountPath | clean -}}
{{- if hasKey $seen $path }}{{ fail (printf "operator.volumeMounts has the mountPath %s, where the container has another volume. Mount it at another path." $path) }}{{ end -}}
{{- $_ := set $seen $path true -}}
{{- end -}}
{{- end }}
