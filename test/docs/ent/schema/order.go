// Package schema has what the client in package ent is generated from:
//
//	go run entgo.io/ent/cmd/ent@v0.14.5 generate --feature sql/execquery ./docs/ent/schema
//
// less enttest and hook, which nothing uses.
package schema

import (
	"entgo.io/ent"
	"entgo.io/ent/schema/field"
)

// Order is a row of the table orders.
type Order struct{ ent.Schema }

// Fields implements ent.Interface.
func (Order) Fields() []ent.Field { return []ent.Field{field.String("id")} }
