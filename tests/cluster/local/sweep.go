package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-client/pkg"
)

// newSweepCommand removes every pod of the node through the container runtime,
// with its network, mounts and cgroups, as the kubelet would.
func newSweepCommand() *cobra.Command {
	var endpoint string
	command := &cobra.Command{
		Use: "sweep",
		RunE: func(command *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			runtime, err := cri.NewRemoteRuntimeService(ctx, endpoint, 30*time.Second, nil, false)
			if err != nil {
				return err
			}
			pods, err := runtime.ListPodSandbox(ctx, nil)
			if err != nil {
				return err
			}
			failures := make([]error, len(pods))
			var all sync.WaitGroup
			for i, pod := range pods {
				all.Go(func() {
					failures[i] = errors.Join(runtime.StopPodSandbox(ctx, pod.Id), runtime.RemovePodSandbox(ctx, pod.Id))
				})
			}
			all.Wait()
			return errors.Join(failures...)
		},
	}
	command.Flags().StringVar(&endpoint, "endpoint", "", "the container runtime's socket, unix://…")
	return command
}
