//go:build !etcd35

package main

import (
	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

// The same names for both layouts of etcd's Go packages.
type (
	client  = clientv3.Client
	config  = clientv3.Config
	session = concurrency.Session
	mutex   = concurrency.Mutex
)

var (
	newClient    = clientv3.New
	newMutex     = concurrency.NewMutex
	sessionOn    = concurrency.NewSession
	withLifetime = concurrency.WithTTL
)
