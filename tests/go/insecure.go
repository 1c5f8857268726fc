// Package insecure has the part of grpc-go 1.34 and newer that the guide uses, for the older grpc-go of Debian 12.
package insecure

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"
)

type plaintext struct{}

// NewCredentials returns credentials that leave a connection as it is.
func NewCredentials() credentials.TransportCredentials { return plaintext{} }

func (plaintext) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, nil, nil
}

func (plaintext) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, nil, nil
}

func (plaintext) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "insecure"}
}

func (plaintext) Clone() credentials.TransportCredentials { return plaintext{} }

func (plaintext) OverrideServerName(string) error { return nil }
